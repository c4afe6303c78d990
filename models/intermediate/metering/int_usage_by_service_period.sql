with

usage_at_cuts as (

    select * from {{ ref('int_usage_at_cuts') }}

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

definitions as (

    select * from {{ ref('int_metric_definitions') }}

),

{# Levels that cancel out over presentation dimensions are no usage of the group. #}
carried_levels as (

    select
        service_period_id,
        metric_code,
        dimensions,
        part_start_at
    from {{ ref('int_usage_opening_levels') }}
    group by service_period_id, metric_code, dimensions, part_start_at
    having sum(level_quantity) <> 0

),

groups_with_carried_levels as (

    select distinct
        service_period_id,
        metric_code,
        dimensions
    from carried_levels

),

usage_by_service_period as (

    select
        {{ surrogate_key(['usage.service_period_id', 'usage.metric_code', 'usage.dimensions']) }}
            as usage_by_service_period_id,
        usage.service_period_id,
        service_periods.subscription_id,
        service_periods.customer_id,
        service_periods.plan_code,
        usage.metric_code,
        usage.dimensions,
        service_periods.time_zone,
        service_periods.billing_period,
        service_periods.service_period_number,
        usage.quantity,
        {{ billable_units(
            'usage.quantity', 'definitions.unit_size', 'definitions.quantity_rounding', 'definitions.quantity_rounding_step'
        ) }} as billable_units,
        usage.event_count,
        usage.event_keys_hash,
        usage.first_event_at,
        usage.last_event_at,
        service_periods.service_period_start_at,
        service_periods.service_period_end_at
    from usage_at_cuts as usage
    inner join service_periods
        on
            usage.service_period_id = service_periods.service_period_id
            and usage.cut_at = service_periods.service_period_end_at
    inner join definitions
        on usage.metric_code = definitions.metric_code
    left join groups_with_carried_levels
        on
            usage.service_period_id = groups_with_carried_levels.service_period_id
            and usage.metric_code = groups_with_carried_levels.metric_code
            and usage.dimensions = groups_with_carried_levels.dimensions
    where usage.event_count > 0 or groups_with_carried_levels.service_period_id is not null

)

select * from usage_by_service_period
