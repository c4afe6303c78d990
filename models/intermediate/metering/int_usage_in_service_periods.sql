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

plan_charges as (

    select * from {{ ref('int_plan_charges') }}

),

numbers as (

    select * from {{ ref('int_numbers') }}

),

plan_metrics as (

    select distinct
        subscription_id,
        plan_code,
        metric_code
    from plan_charges
    where metric_code is not null

),

{# Joining on the UTC month first keeps the join from pairing each window with every period of a long subscription. #}
parts_by_month as (

    select
        parts.*,
        {{ dbt.dateadd('month', 'numbers.number', dbt.date_trunc('month', 'parts.part_start_at')) }} as utc_month
    from parts
    inner join numbers
        on numbers.number <= {{ dbt.datediff('parts.part_start_at', 'parts.part_end_at', 'month') }}

),

usage_in_parts as (

    select
        parts_by_month.service_period_id,
        parts_by_month.part_end_at,
        usage_hourly.*
    from usage_hourly
    inner join parts_by_month
        on
            usage_hourly.customer_id = parts_by_month.customer_id
            and {{ dbt.date_trunc('month', 'usage_hourly.window_start_at') }} = parts_by_month.utc_month
            and usage_hourly.window_start_at >= parts_by_month.part_start_at
            and usage_hourly.window_start_at < parts_by_month.part_end_at
    inner join plan_metrics
        on
            parts_by_month.subscription_id = plan_metrics.subscription_id
            and parts_by_month.plan_code = plan_metrics.plan_code
            and usage_hourly.metric_code = plan_metrics.metric_code

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
