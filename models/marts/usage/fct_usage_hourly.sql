{# A view: a table would copy all hours of history in each build. #}
{{ config(materialized='view') }}

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

usage_in_one_row as (

    select * from usage_hourly
    where aggregation not in ('unique_count', 'latest', 'percentile') and distinct_value = ''

),

usage_in_several_rows as (

    select * from usage_hourly
    where aggregation in ('unique_count', 'latest', 'percentile') or distinct_value <> ''

),

usage_by_window as (

    select
        {{ keys | join(',\n        ') }},
        case
            when aggregation = 'average' then {{ divide_quantity('quantity', 'event_count') }}
            else quantity
        end as quantity,
        event_count,
        event_keys_hash,
        first_event_at,
        last_event_at
    from usage_in_one_row

    union all

    {{ roll_up_usage('usage_in_several_rows', keys) }}

),

usage_of_metrics as (

    select
        {{ surrogate_key([
            'metric_code', 'customer_id', 'dimensions', 'presentation_dimensions', timestamp_text('window_start_at')
        ]) }}
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
