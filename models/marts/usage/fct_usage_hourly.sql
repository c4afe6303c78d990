with

usage_hourly as (

    select
        usage_hourly.*,
        metrics.unit,
        metrics.percentile
    from {{ ref('int_usage_hourly') }} as usage_hourly
    inner join {{ ref('billable_metrics') }} as metrics
        on usage_hourly.metric_code = metrics.metric_code
    where usage_hourly.event_count > 0

),

{%- set keys = [
    'metric_code', 'customer_id', 'dimensions', 'presentation_dimensions', 'unit', 'window_start_at', 'window_end_at'
] %}

usage_by_window as (

    {{ roll_up_usage('usage_hourly', keys) }}

),

usage_of_metrics as (

    select
        {{ surrogate_key(['metric_code', 'customer_id', 'dimensions', 'presentation_dimensions', timestamp_text('window_start_at')]) }}
            as usage_hourly_id,
        metric_code,
        customer_id,
        dimensions,
        presentation_dimensions,
        quantity,
        unit,
        event_count,
        first_event_at,
        last_event_at,
        window_start_at,
        window_end_at
    from usage_by_window

)

select * from usage_of_metrics
