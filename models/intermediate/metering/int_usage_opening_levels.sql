{# The level of a weighted_sum at the start of each part of a service period: the sum of all changes before. #}
with

level_changes as (

    select * from {{ ref('int_usage_hourly') }}
    where event_count > 0 and aggregation = 'weighted_sum'

),

parts as (

    select * from {{ ref('int_service_period_parts') }}

),

plan_charges as (

    select * from {{ ref('int_plan_charges') }}

),

usage_groups as (

    select distinct
        metric_code,
        customer_id,
        dimensions,
        presentation_dimensions
    from level_changes

),

parts_of_groups as (

    select distinct
        parts.service_period_id,
        usage_groups.metric_code,
        usage_groups.customer_id,
        usage_groups.dimensions,
        usage_groups.presentation_dimensions,
        parts.part_start_at
    from usage_groups
    inner join plan_charges
        on
            usage_groups.customer_id = plan_charges.customer_id
            and usage_groups.metric_code = plan_charges.metric_code
    inner join parts
        on
            plan_charges.subscription_id = parts.subscription_id
            and plan_charges.plan_code = parts.plan_code

),

changes_and_part_starts as (

    select
        cast(null as varchar) as service_period_id,
        metric_code,
        customer_id,
        dimensions,
        presentation_dimensions,
        window_start_at as happens_at,
        1 as happens_after,
        quantity
    from level_changes

    union all

    select
        service_period_id,
        metric_code,
        customer_id,
        dimensions,
        presentation_dimensions,
        part_start_at as happens_at,
        0 as happens_after,
        0 as quantity
    from parts_of_groups

),

running_levels as (

    select
        *,
        sum(quantity) over (
            partition by metric_code, customer_id, dimensions, presentation_dimensions
            order by happens_at, happens_after
            rows between unbounded preceding and current row
        ) as level_quantity
    from changes_and_part_starts

),

opening_levels as (

    select
        service_period_id,
        metric_code,
        customer_id,
        dimensions,
        presentation_dimensions,
        happens_at as part_start_at,
        cast(level_quantity as {{ quantity_total_type() }}) as level_quantity
    from running_levels
    where service_period_id is not null and level_quantity <> 0

)

select * from opening_levels
