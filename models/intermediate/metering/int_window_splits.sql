with

parts as (

    select * from {{ ref('int_service_period_parts') }}

),

slices as (

    select * from {{ ref('int_rating_slices') }}

),

plan_charges as (

    select * from {{ ref('int_plan_charges') }}

),

definitions as (

    select * from {{ ref('int_metric_definitions') }}

),

numbers as (

    select * from {{ ref('int_numbers') }}

),

{# Where local midnight is not at a full UTC hour, daily and monthly metering periods begin inside one. #}
parts_with_metered_days as (

    select
        parts.customer_id,
        parts.time_zone,
        parts.part_start_at,
        parts.part_end_at,
        {{ dbt.date_trunc('day', utc_to_local('parts.part_start_at', 'parts.time_zone')) }} as first_local_day_at  -- noqa: LT05
    from parts
    where
        exists (
            select 1
            from plan_charges
            inner join definitions
                on plan_charges.metric_code = definitions.metric_code
            where
                parts.subscription_id = plan_charges.subscription_id
                and parts.plan_code = plan_charges.plan_code
                and definitions.metering_period in ('day', 'month')
        )

),

local_midnights as (

    select
        parts.customer_id,
        {{ local_to_utc(dbt.dateadd('day', 'numbers.number', 'parts.first_local_day_at'), 'parts.time_zone') }} as boundary_at
    from parts_with_metered_days as parts
    inner join numbers
        on numbers.number <= {{ dbt.datediff('parts.part_start_at', 'parts.part_end_at', 'day') }} + 1  -- noqa: LT05

),

boundaries as (

    select
        customer_id,
        part_start_at as boundary_at
    from parts

    union

    select
        customer_id,
        part_end_at as boundary_at
    from parts

    union

    select
        customer_id,
        slice_start_at as boundary_at
    from slices

    union

    select
        customer_id,
        slice_end_at as boundary_at
    from slices

    union

    select
        customer_id,
        boundary_at
    from local_midnights

),

boundaries_inside_an_hour as (

    select
        customer_id,
        boundary_at,
        {{ dbt.date_trunc('hour', 'boundary_at') }} as hour_start_at
    from boundaries
    where boundary_at <> {{ dbt.date_trunc('hour', 'boundary_at') }}

),

window_starts as (

    select
        customer_id,
        hour_start_at,
        hour_start_at as window_start_at
    from boundaries_inside_an_hour

    union

    select
        customer_id,
        hour_start_at,
        boundary_at as window_start_at
    from boundaries_inside_an_hour

),

windows as (

    select
        customer_id,
        hour_start_at,
        window_start_at,
        coalesce(
            lead(window_start_at) over (
                partition by customer_id, hour_start_at
                order by window_start_at
            ),
            {{ dbt.dateadd('hour', 1, 'hour_start_at') }}
        ) as window_end_at
    from window_starts

)

select * from windows
