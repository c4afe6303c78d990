with

usage_breakdown as (

    select * from {{ ref('int_usage_breakdown') }}

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

metrics as (

    select * from {{ ref('billable_metrics') }}

),

usage_of_metrics as (

    select
        {{ surrogate_key([
            'usage.service_period_id', 'usage.metric_code', 'usage.dimensions', 'usage.presentation_dimensions'
        ]) }} as usage_breakdown_id,
        service_periods.subscription_id,
        service_periods.customer_id,
        service_periods.plan_code,
        usage.metric_code,
        usage.dimensions,
        usage.presentation_dimensions,
        service_periods.time_zone,
        service_periods.billing_period,
        usage.quantity,
        metrics.unit,
        usage.event_count,
        usage.first_event_at,
        usage.last_event_at,
        service_periods.service_period_start_at,
        service_periods.service_period_end_at
    from usage_breakdown as usage
    inner join service_periods
        on usage.service_period_id = service_periods.service_period_id
    inner join metrics
        on usage.metric_code = metrics.metric_code

)

select * from usage_of_metrics
