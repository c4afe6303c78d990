{# A level needs no event to be usage, so what of it no price covers shows in no hour. Of a weighted_sum it is what the service
   period has beyond the growth that its price segments price; of what does not grow, such as latest, its share by days. #}
with

definitions as (

    select * from {{ ref('int_metric_definitions') }}
    where aggregation = 'weighted_sum' or not is_cumulative

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

usage_by_service_period as (

    select
        usage.*,
        definitions.is_cumulative
    from {{ ref('int_usage_by_service_period') }} as usage
    inner join definitions
        on usage.metric_code = definitions.metric_code

),

plan_charges as (

    select * from {{ ref('int_plan_charges') }}

),

price_segments as (

    select * from {{ ref('int_price_segments') }}

),

tier_sets as (

    select * from {{ ref('int_tier_sets') }}

),

usage_at_cuts as (

    select * from {{ ref('int_usage_at_cuts') }}

),

group_segments as (

    select
        price_segments.service_period_id,
        price_segments.charge_code,
        price_segments.metric_code,
        tier_sets.dimensions,
        definitions.is_cumulative,
        price_segments.segment_days,
        price_segments.segment_start_at,
        price_segments.segment_end_at
    from price_segments
    inner join definitions
        on price_segments.metric_code = definitions.metric_code
    inner join tier_sets
        on
            price_segments.charge_code = tier_sets.charge_code
            and price_segments.price_version = tier_sets.price_version

),

priced_growth as (

    select
        segments.service_period_id,
        segments.charge_code,
        segments.dimensions,
        sum(coalesce(usage_through.quantity, 0) - coalesce(usage_before.quantity, 0)) as quantity
    from group_segments as segments
    left join usage_at_cuts as usage_before
        on
            segments.service_period_id = usage_before.service_period_id
            and segments.metric_code = usage_before.metric_code
            and segments.dimensions = usage_before.dimensions
            and segments.segment_start_at = usage_before.cut_at
    left join usage_at_cuts as usage_through
        on
            segments.service_period_id = usage_through.service_period_id
            and segments.metric_code = usage_through.metric_code
            and segments.dimensions = usage_through.dimensions
            and segments.segment_end_at = usage_through.cut_at
    where segments.is_cumulative
    group by
        segments.service_period_id,
        segments.charge_code,
        segments.dimensions

),

priced_days as (

    select
        service_period_id,
        charge_code,
        dimensions,
        sum(segment_days) as days_priced
    from group_segments
    where not is_cumulative
    group by
        service_period_id,
        charge_code,
        dimensions

),

{# What no price covers on any day is no_price, event by event. #}
shares_not_priced as (

    select
        usage.metric_code,
        usage.customer_id,
        usage.dimensions,
        usage.subscription_id,
        priced_days.charge_code,
        'no_price_for_level' as reason_code,
        usage.service_period_start_at as month_start_at,
        cast(
            {{ divide_quantity(
                'cast(usage.quantity as ' ~ quantity_type() ~ ') * (service_periods.active_days - priced_days.days_priced)',
                'nullif(service_periods.active_days, 0)'
            ) }} as {{ quantity_total_type() }}
        ) as quantity,
        cast(0 as bigint) as event_count,
        cast(null as datetime) as first_event_at,
        cast(null as datetime) as last_event_at
    from usage_by_service_period as usage
    inner join service_periods
        on usage.service_period_id = service_periods.service_period_id
    inner join priced_days
        on
            usage.service_period_id = priced_days.service_period_id
            and usage.dimensions = priced_days.dimensions
    inner join plan_charges
        on
            usage.subscription_id = plan_charges.subscription_id
            and usage.plan_code = plan_charges.plan_code
            and usage.metric_code = plan_charges.metric_code
            and priced_days.charge_code = plan_charges.charge_code
    where
        not usage.is_cumulative
        and usage.quantity <> 0
        and priced_days.days_priced < service_periods.active_days

),

growth_not_priced as (

    select
        usage.metric_code,
        usage.customer_id,
        usage.dimensions,
        usage.subscription_id,
        plan_charges.charge_code,
        'no_price_for_level' as reason_code,
        usage.service_period_start_at as month_start_at,
        cast(usage.quantity - coalesce(priced_growth.quantity, 0) as {{ quantity_total_type() }}) as quantity,
        cast(0 as bigint) as event_count,
        cast(null as datetime) as first_event_at,
        cast(null as datetime) as last_event_at
    from usage_by_service_period as usage
    inner join plan_charges
        on
            usage.subscription_id = plan_charges.subscription_id
            and usage.plan_code = plan_charges.plan_code
            and usage.metric_code = plan_charges.metric_code
    left join priced_growth
        on
            usage.service_period_id = priced_growth.service_period_id
            and plan_charges.charge_code = priced_growth.charge_code
            and usage.dimensions = priced_growth.dimensions
    where
        usage.is_cumulative
        and usage.quantity <> coalesce(priced_growth.quantity, 0)

),

levels_not_priced as (

    select * from growth_not_priced

    union all

    select * from shares_not_priced

)

select * from levels_not_priced
