with

usage_by_service_period as (

    select * from {{ ref('int_usage_by_service_period') }}

),

metrics as (

    select * from {{ ref('billable_metrics') }}

),

usage_of_metrics as (

    select
        usage.usage_by_service_period_id,
        usage.subscription_id,
        usage.customer_id,
        usage.plan_code,
        usage.metric_code,
        usage.dimensions,
        usage.time_zone,
        usage.billing_period,
        usage.quantity,
        metrics.unit,
        usage.billable_units,
        usage.event_count,
        usage.first_event_at,
        usage.last_event_at,
        usage.service_period_start_at,
        usage.service_period_end_at
    from usage_by_service_period as usage
    inner join metrics
        on usage.metric_code = metrics.metric_code

)

select * from usage_of_metrics
