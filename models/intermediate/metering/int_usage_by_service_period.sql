with

usage_in_service_periods as (

    select * from {{ ref('int_usage_in_service_periods') }}

),

usage_by_service_period as (

    select
        {{ surrogate_key(['subscription_id', 'metric_code', 'dimensions', 'service_period_start_at']) }}
            as usage_by_service_period_id,
        subscription_id,
        customer_id,
        plan_code,
        metric_code,
        dimensions,
        time_zone,
        billing_period,
        {{ roll_up_quantity() }} as quantity,
        cast(sum(event_count) as bigint) as event_count,
        min(first_event_at) as first_event_at,
        max(last_event_at) as last_event_at,
        service_period_start_at,
        service_period_end_at
    from usage_in_service_periods
    group by
        subscription_id,
        customer_id,
        plan_code,
        metric_code,
        dimensions,
        time_zone,
        billing_period,
        service_period_start_at,
        service_period_end_at

)

select * from usage_by_service_period
