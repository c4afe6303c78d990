with

usage_hourly as (

    select * from {{ ref('int_usage_hourly') }}
    where event_count > 0

),

metrics as (

    select * from {{ ref('billable_metrics') }}

),

usage_of_metrics as (

    select
        {{ surrogate_key([
            'usage_hourly.metric_code',
            'usage_hourly.customer_id',
            'usage_hourly.dimensions',
            'usage_hourly.window_start_at',
        ]) }} as usage_hourly_id,
        usage_hourly.metric_code,
        usage_hourly.customer_id,
        usage_hourly.dimensions,
        {{ roll_up_quantity(prefix='usage_hourly.') }} as quantity,
        max(metrics.unit) as unit,
        cast(sum(usage_hourly.event_count) as bigint) as event_count,
        min(usage_hourly.first_event_at) as first_event_at,
        max(usage_hourly.last_event_at) as last_event_at,
        usage_hourly.window_start_at,
        usage_hourly.window_end_at
    from usage_hourly
    inner join metrics
        on usage_hourly.metric_code = metrics.metric_code
    group by
        usage_hourly.metric_code,
        usage_hourly.customer_id,
        usage_hourly.dimensions,
        usage_hourly.window_start_at,
        usage_hourly.window_end_at

)

select * from usage_of_metrics
