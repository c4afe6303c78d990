with

usage_hourly as (

    select * from {{ ref('int_usage_hourly') }}
    where event_count > 0

),

usage_in_service_periods as (

    select * from {{ ref('int_usage_in_service_periods') }}

),

definitions as (

    select * from {{ ref('int_metric_definitions') }}

),

plan_charges as (

    select distinct
        plan_code,
        metric_code,
        charge_code
    from {{ ref('charges') }}

),

price_segments as (

    select * from {{ ref('int_price_segments') }}

),

usage_with_charges as (

    select
        usage_in_service_periods.*,
        plan_charges.charge_code
    from usage_in_service_periods
    left join plan_charges
        on
            usage_in_service_periods.plan_code = plan_charges.plan_code
            and usage_in_service_periods.metric_code = plan_charges.metric_code

),

{# One of a customer's subscriptions having a charge is enough for the usage to be expected on an invoice. #}
usage_coverage as (

    select
        usage_hourly_id,
        count(charge_code) > 0 as has_charge
    from usage_with_charges
    group by usage_hourly_id

),

usage_without_charge as (

    select
        usage_hourly.*,
        cast(null as varchar) as subscription_id,
        cast(null as varchar) as charge_code,
        case
            when definitions.is_residual then 'no_metric'
            when usage_coverage.usage_hourly_id is null then 'no_subscription'
            else 'no_charge'
        end as reason_code
    from usage_hourly
    left join usage_coverage
        on usage_hourly.usage_hourly_id = usage_coverage.usage_hourly_id
    left join definitions
        on usage_hourly.metric_code = definitions.metric_code
    where not coalesce(usage_coverage.has_charge, false)

),

usage_without_price as (

    select
        usage_with_charges.usage_hourly_id,
        usage_with_charges.subscription_id,
        usage_with_charges.charge_code
    from usage_with_charges
    left join price_segments
        on
            usage_with_charges.subscription_id = price_segments.subscription_id
            and usage_with_charges.charge_code = price_segments.charge_code
            and usage_with_charges.service_period_start_at = price_segments.service_period_start_at
            and usage_with_charges.window_start_at >= price_segments.segment_start_at
            and usage_with_charges.window_start_at < price_segments.segment_end_at
    where
        usage_with_charges.charge_code is not null
        and price_segments.charge_code is null

),

usage_not_priced as (

    select * from usage_without_charge

    union all

    select
        usage_hourly.*,
        usage_without_price.subscription_id,
        usage_without_price.charge_code,
        'no_price' as reason_code
    from usage_without_price
    inner join usage_hourly
        on usage_without_price.usage_hourly_id = usage_hourly.usage_hourly_id

)

select * from usage_not_priced
