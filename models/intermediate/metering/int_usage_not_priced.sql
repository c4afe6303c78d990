{% set usage_columns = [
    'usage_hourly_id', 'metric_code', 'aggregation', 'customer_id', 'dimensions', 'distinct_value', 'quantity', 'event_count',
    'event_keys_hash', 'first_event_at', 'last_event_at', 'window_start_at'
] %}
with

usage_hourly {{ as_inlined() }} (

    select * from {{ ref('int_usage_hourly') }}
    where event_count > 0

),

usage_in_service_periods {{ as_inlined() }} (

    select * from {{ ref('int_usage_in_service_periods') }}
    where usage_hourly_id is not null

),

charged_time as (

    select * from {{ ref('int_charged_time') }}

),

definitions as (

    select * from {{ ref('int_metric_definitions') }}

),

parts as (

    select * from {{ ref('int_service_period_parts') }}

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

usage_by_service_period as (

    select * from {{ ref('int_usage_by_service_period') }}

),

{# Looked up by time: keys of all hourly rows would be compared with each other. #}
usage_in_no_service_period as (

    select usage_hourly.*
    from usage_hourly
    left join charged_time
        on
            usage_hourly.customer_id = charged_time.customer_id
            and usage_hourly.metric_code = charged_time.metric_code
            and {{ dbt.date_trunc('month', 'usage_hourly.window_start_at') }} = charged_time.utc_month
            and usage_hourly.window_start_at >= charged_time.part_start_at
            and usage_hourly.window_start_at < charged_time.part_end_at
    where charged_time.service_period_id is null

),

{# One subscription that covers the time is enough to say that only a charge is missing. #}
usage_covered_by_subscriptions as (

    select distinct usage_in_no_service_period.usage_hourly_id
    from usage_in_no_service_period
    inner join parts
        on
            usage_in_no_service_period.customer_id = parts.customer_id
            and usage_in_no_service_period.window_start_at >= parts.part_start_at
            and usage_in_no_service_period.window_start_at < parts.part_end_at

),

usage_without_charge as (

    select
        {%- for column in usage_columns %}
        usage_in_no_service_period.{{ column }},
        {%- endfor %}
        cast(null as varchar) as subscription_id,
        cast(null as varchar) as charge_code,
        case
            when definitions.is_residual then 'no_metric'
            when usage_covered_by_subscriptions.usage_hourly_id is null then 'no_subscription'
            else 'no_charge'
        end as reason_code
    from usage_in_no_service_period
    left join usage_covered_by_subscriptions
        on usage_in_no_service_period.usage_hourly_id = usage_covered_by_subscriptions.usage_hourly_id
    left join definitions
        on usage_in_no_service_period.metric_code = definitions.metric_code

),

{# Few charges lack a price somewhere; only usage under these is looked at window by window. #}
priced_time as (

    select
        price_segments.service_period_id,
        price_segments.charge_code,
        sum({{ dbt.datediff('price_segments.segment_start_at', 'price_segments.segment_end_at', 'microsecond') }})
            as priced_microseconds
    from price_segments
    group by
        price_segments.service_period_id,
        price_segments.charge_code

),

active_time as (

    select
        service_period_id,
        subscription_id,
        plan_code,
        sum({{ dbt.datediff('part_start_at', 'part_end_at', 'microsecond') }}) as active_microseconds
    from parts
    group by
        service_period_id,
        subscription_id,
        plan_code

),

charges_with_gaps as (

    select
        active_time.service_period_id,
        plan_charges.charge_code,
        plan_charges.metric_code
    from active_time
    inner join plan_charges
        on
            active_time.subscription_id = plan_charges.subscription_id
            and active_time.plan_code = plan_charges.plan_code
    left join priced_time
        on
            active_time.service_period_id = priced_time.service_period_id
            and plan_charges.charge_code = priced_time.charge_code
    where
        plan_charges.metric_code is not null
        and coalesce(priced_time.priced_microseconds, 0) < active_time.active_microseconds

),

{# A row for each service period and charge that lacks a price somewhere: far fewer than hours of usage. #}
few_charges_with_gaps as (

    {{ few_rows('charges_with_gaps', ['service_period_id', 'charge_code', 'metric_code']) }}

),

usage_groups as (

    select distinct
        metric_code,
        dimensions
    from usage_by_service_period

),

charges_in_use as (

    select distinct charge_code from plan_charges

),

groups_without_tiers as (

    select distinct
        price_versions.charge_code,
        price_versions.metric_code,
        usage_groups.dimensions
    from {{ ref('charges') }} as price_versions
    inner join charges_in_use
        on price_versions.charge_code = charges_in_use.charge_code
    inner join usage_groups
        on price_versions.metric_code = usage_groups.metric_code
    left join tier_sets
        on
            price_versions.charge_code = tier_sets.charge_code
            and price_versions.price_version = tier_sets.price_version
            and usage_groups.dimensions = tier_sets.dimensions
    where tier_sets.charge_code is null

),

few_groups_without_tiers as (

    {{ few_rows('groups_without_tiers', ['charge_code', 'metric_code', 'dimensions']) }}

),

usage_in_question as (

    select
        {%- for column in usage_columns %}
        usage.{{ column }},
        {%- endfor %}
        usage.service_period_id,
        usage.subscription_id,
        charges_with_gaps.charge_code
    from usage_in_service_periods as usage
    inner join few_charges_with_gaps as charges_with_gaps
        on
            usage.service_period_id = charges_with_gaps.service_period_id
            and usage.metric_code = charges_with_gaps.metric_code

    union

    select
        {%- for column in usage_columns %}
        usage.{{ column }},
        {%- endfor %}
        usage.service_period_id,
        usage.subscription_id,
        groups_without_tiers.charge_code
    from usage_in_service_periods as usage
    inner join few_groups_without_tiers as groups_without_tiers
        on
            usage.metric_code = groups_without_tiers.metric_code
            and usage.dimensions = groups_without_tiers.dimensions
    inner join plan_charges
        on
            usage.subscription_id = plan_charges.subscription_id
            and usage.plan_code = plan_charges.plan_code
            and groups_without_tiers.charge_code = plan_charges.charge_code

),

usage_without_price as (

    select
        {%- for column in usage_columns %}
        usage_in_question.{{ column }},
        {%- endfor %}
        usage_in_question.subscription_id,
        usage_in_question.charge_code,
        'no_price' as reason_code
    from usage_in_question
    left join price_segments
        on
            usage_in_question.service_period_id = price_segments.service_period_id
            and usage_in_question.charge_code = price_segments.charge_code
            and usage_in_question.window_start_at >= price_segments.segment_start_at
            and usage_in_question.window_start_at < price_segments.segment_end_at
    left join tier_sets
        on
            price_segments.charge_code = tier_sets.charge_code
            and price_segments.price_version = tier_sets.price_version
            and usage_in_question.dimensions = tier_sets.dimensions
    where tier_sets.charge_code is null

),

usage_not_priced as (

    select * from usage_without_charge

    union all

    select * from usage_without_price

)

select * from usage_not_priced
