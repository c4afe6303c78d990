with

usage_by_price_segment as (

    select * from {{ ref('int_usage_by_price_segment') }}

),

charges as (

    select * from {{ ref('charges') }}

),

entitlements as (

    select * from {{ ref('entitlements') }}

),

usage_joined_to_prices as (

    select
        usage.*,
        charges.charge_name,
        charges.charge_model,
        charges.package_size,
        coalesce(entitlements.included_quantity, 0) as included_quantity
    from usage_by_price_segment as usage
    inner join charges
        on
            usage.charge_code = charges.charge_code
            and usage.price_version = charges.price_version
    left join entitlements
        on
            usage.charge_code = entitlements.charge_code
            and usage.service_period_start_at >= {{ local_to_utc('entitlements.valid_from', 'usage.time_zone') }}
            and usage.service_period_start_at < coalesce(
                {{ local_to_utc('entitlements.valid_to', 'usage.time_zone') }},
                cast('9999-12-31' as timestamp)
            )

),

{# The entitlement is used up by the first usage of the period. #}
overage as (

    select
        *,
        greatest(quantity_before - included_quantity, 0) as overage_before,
        greatest(quantity_through - included_quantity, 0) as overage_through,
        greatest(service_period_quantity - included_quantity, 0) as service_period_overage
    from usage_joined_to_prices

),

billable_quantities as (

    select
        {{ surrogate_key([
            'subscription_id', 'charge_code', 'price_version', 'dimensions', 'service_period_start_at'
        ]) }} as line_id,
        subscription_id,
        customer_id,
        plan_code,
        charge_code,
        price_version,
        metric_code,
        charge_name,
        charge_model,
        dimensions,
        time_zone,
        billing_period,
        package_size,
        cast(quantity_through - quantity_before as {{ quantity_total_type() }}) as metered_quantity,
        cast(
            (quantity_through - quantity_before) - (overage_through - overage_before) as {{ quantity_total_type() }}
        ) as included_quantity_used,
        {%- for column in ['overage_before', 'overage_through', 'service_period_overage'] %}
        cast(
            case
                when charge_model = 'package' then {{ divide_ceiling(column, 'package_size') }}
                else {{ column }}
            end as {{ quantity_total_type() }}
        ) as {{ column | replace('overage', 'billable') }},
        {%- endfor %}
        event_count,
        first_event_at,
        last_event_at,
        service_period_start_at,
        service_period_end_at,
        segment_start_at,
        segment_end_at
    from overage

)

select * from billable_quantities
