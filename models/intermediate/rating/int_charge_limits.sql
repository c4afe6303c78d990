{# Minimum and maximum of a charge for a service period: each price version has its share of the days. #}
with

price_segments as (

    select * from {{ ref('int_price_segments') }}

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

charges as (

    select * from {{ ref('charges') }}

),

plans as (

    select * from {{ ref('plans') }}

),

currencies as (

    select * from {{ ref('currencies') }}

),

{%- set share -%}
    case
        when charges.proration = 'by_day' then price_segments.segment_days
        when price_segments.segment_start_at = service_periods.service_period_start_at then service_periods.full_days
        else 0
    end
{%- endset %}

limits as (

    select
        price_segments.service_period_id,
        price_segments.charge_code,
        currencies.minor_units,
        max(service_periods.full_days) as full_days,
        cast(sum(coalesce(charges.minimum_amount, 0) * {{ share }}) as {{ amount_type() }}) as minimum_day_amount,
        {# A version without a maximum has none for the service period. So has a charge that has come into the period later and is
           not prorated, which counts by what was in force at the start. #}
        cast(
            case
                when count(charges.maximum_amount) = count(*) and sum({{ share }}) > 0
                    then sum(charges.maximum_amount * {{ share }})
            end as {{ amount_type() }}
        ) as maximum_day_amount
    from price_segments
    inner join service_periods
        on price_segments.service_period_id = service_periods.service_period_id
    inner join charges
        on
            price_segments.charge_code = charges.charge_code
            and price_segments.price_version = charges.price_version
    inner join plans
        on price_segments.plan_code = plans.plan_code
    inner join currencies
        on plans.currency_code = currencies.currency_code
    group by
        price_segments.service_period_id,
        price_segments.charge_code,
        currencies.minor_units
    having count(charges.minimum_amount) > 0 or count(charges.maximum_amount) > 0

),

limits_rounded as (

    select
        *,
        {{ round_to_minor_units(prorate_amount('minimum_day_amount', '1', 'full_days'), 'minor_units') }} as minimum_amount,
        {{ round_to_minor_units(prorate_amount('maximum_day_amount', '1', 'full_days'), 'minor_units') }} as maximum_amount
    from limits

),

limits_in_minor_units as (

    select
        service_period_id,
        charge_code,
        {{ in_minor_units('minimum_amount', 'minor_units') }} as minimum_minor,
        {{ in_minor_units('maximum_amount', 'minor_units') }} as maximum_minor
    from limits_rounded

)

select * from limits_in_minor_units
