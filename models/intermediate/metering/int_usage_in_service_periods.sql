{{ config(materialized='view') }}

with

usage_hourly as (

    select * from {{ ref('int_usage_hourly') }}
    where event_count > 0

),

opening_levels as (

    select * from {{ ref('int_usage_opening_levels') }}

),

parts as (

    select * from {{ ref('int_service_period_parts') }}

),

charged_time as (

    select * from {{ ref('int_charged_time') }}

),

usage_in_parts as (

    select
        charged_time.service_period_id,
        charged_time.part_end_at,
        usage_hourly.*
    from usage_hourly
    inner join charged_time
        on
            usage_hourly.customer_id = charged_time.customer_id
            and usage_hourly.metric_code = charged_time.metric_code
            and {{ dbt.date_trunc('month', 'usage_hourly.window_start_at') }} = charged_time.utc_month
            and usage_hourly.window_start_at >= charged_time.part_start_at
            and usage_hourly.window_start_at < charged_time.part_end_at

),

{# A level that is carried into a part is a change at its start, without an event. #}
usage_with_opening_levels as (

    select
        service_period_id,
        part_end_at,
        usage_hourly_id,
        metric_code,
        aggregation,
        dimensions,
        presentation_dimensions,
        distinct_value,
        quantity,
        quantity_microseconds,
        event_count,
        event_keys_hash,
        first_event_at,
        last_event_at,
        hour_start_at,
        window_start_at,
        window_end_at
    from usage_in_parts

    union all

    select
        opening_levels.service_period_id,
        parts.part_end_at,
        cast(null as varchar) as usage_hourly_id,
        opening_levels.metric_code,
        'weighted_sum' as aggregation,
        opening_levels.dimensions,
        opening_levels.presentation_dimensions,
        '' as distinct_value,
        opening_levels.level_quantity as quantity,
        0 as quantity_microseconds,
        0 as event_count,
        0 as event_keys_hash,
        cast(null as datetime) as first_event_at,
        cast(null as datetime) as last_event_at,
        opening_levels.part_start_at as hour_start_at,
        opening_levels.part_start_at as window_start_at,
        opening_levels.part_start_at as window_end_at
    from opening_levels
    inner join parts
        on
            opening_levels.service_period_id = parts.service_period_id
            and opening_levels.part_start_at = parts.part_start_at

)

select
    usage_with_opening_levels.*,
    service_periods.subscription_id,
    service_periods.customer_id,
    service_periods.plan_code,
    service_periods.time_zone,
    service_periods.full_period_start_at,
    service_periods.full_period_end_at,
    service_periods.service_period_start_at,
    service_periods.service_period_end_at
from usage_with_opening_levels
inner join {{ ref('int_service_periods') }} as service_periods
    on usage_with_opening_levels.service_period_id = service_periods.service_period_id
