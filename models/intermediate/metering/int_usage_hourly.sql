{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key='usage_hourly_id'
) }}

with

usage_events as (

    select * from {{ ref('stg_usage_events') }}

),

definitions as (

    select * from {{ ref('int_metric_definitions') }}

),

filters as (

    select * from {{ ref('metric_filters') }}

),

window_splits as (

    select * from {{ ref('int_window_splits') }}

),

events_by_hour as (

    select
        *,
        {{ dbt.date_trunc('hour', 'occurred_at') }} as hour_start_at
    from usage_events

),

{% if is_incremental() %}

metered as (

    select * from {{ this }}

),

{# A delivery that was accepted before and no longer is touches its hour as much as a new one. #}
hours_with_changed_deliveries as (

    select distinct
        customer_id,
        {{ dbt.date_trunc('hour', 'occurred_at') }} as hour_start_at
    from {{ ref('stg_event_deliveries') }}
    where
        stage_sequence > (select coalesce(max(metered.stage_sequence), 0) from metered)
        and customer_id is not null
        and occurred_at is not null

),

current_windows_of_metered_hours as (

    select
        metered_hours.customer_id,
        metered_hours.hour_start_at,
        metered_hours.window_start_at as metered_start_at,
        metered_hours.window_end_at as metered_end_at,
        coalesce(window_splits.window_start_at, metered_hours.hour_start_at) as window_start_at,
        coalesce(
            window_splits.window_end_at,
            {{ dbt.dateadd('hour', 1, 'metered_hours.hour_start_at') }}
        ) as window_end_at
    from (
        select distinct
            customer_id,
            hour_start_at,
            window_start_at,
            window_end_at
        from metered
        where event_count > 0
    ) as metered_hours
    left join window_splits
        on
            metered_hours.customer_id = window_splits.customer_id
            and metered_hours.hour_start_at = window_splits.hour_start_at

),

{# A new price, time zone or subscription moves the boundaries inside an hour. #}
hours_with_moved_boundaries as (

    select
        customer_id,
        hour_start_at
    from current_windows_of_metered_hours
    group by customer_id, hour_start_at, metered_start_at, metered_end_at
    having
        max(
            case
                when window_start_at = metered_start_at and window_end_at = metered_end_at then 1
                else 0
            end
        ) = 0

),

hours_to_meter as (

    select
        customer_id,
        hour_start_at
    from hours_with_changed_deliveries

    union

    select
        customer_id,
        hour_start_at
    from hours_with_moved_boundaries

),

metered_definitions as (

    select
        metric_code,
        definition_hash
    from metered
    where customer_id is null

),

{# New and redefined metrics are metered over all of history, with the others of their event type, on which the residual
   metric depends. #}
definitions_to_meter as (

    select *
    from definitions
    where
        event_type in (
            select stale_definitions.event_type
            from definitions as stale_definitions
            where not exists (
                select 1
                from metered_definitions
                where
                    metered_definitions.metric_code = stale_definitions.metric_code
                    and metered_definitions.definition_hash = stale_definitions.definition_hash
            )
        )

),

{% endif %}

metric_events as (

    {% set metric_event_columns %}
        events_by_hour.delivery_id,
        events_by_hour.idempotency_key,
        events_by_hour.customer_id,
        events_by_hour.occurred_at,
        events_by_hour.hour_start_at,
        events_by_hour.properties,
        definitions.*
    {% endset %}

    {% if is_incremental() %}
    select {{ metric_event_columns }}
    from events_by_hour
    inner join hours_to_meter
        on
            events_by_hour.customer_id = hours_to_meter.customer_id
            and events_by_hour.hour_start_at = hours_to_meter.hour_start_at
    inner join definitions
        on events_by_hour.event_type = definitions.event_type

    union

    select {{ metric_event_columns }}
    from events_by_hour
    inner join definitions_to_meter as definitions
        on events_by_hour.event_type = definitions.event_type
    {% else %}
    select {{ metric_event_columns }}
    from events_by_hour
    inner join definitions
        on events_by_hour.event_type = definitions.event_type
    {% endif %}

),

filter_groups as (

    select distinct
        metric_code,
        property_name,
        operator
    from filters

),

metric_events_with_filtered_value as (

    select
        metric_events.delivery_id,
        metric_events.metric_code,
        filter_groups.property_name,
        filter_groups.operator,
        {{ json_text('metric_events.properties', 'filter_groups.property_name') }} as value_text
    from metric_events
    inner join filter_groups
        on metric_events.metric_code = filter_groups.metric_code

),

{# Only not_in is met by meeting no row; every other operator by meeting one. #}
metric_events_filtered_out as (

    select distinct
        filtered_values.delivery_id,
        filtered_values.metric_code
    from metric_events_with_filtered_value as filtered_values
    left join filters
        on
            filtered_values.metric_code = filters.metric_code
            and filtered_values.property_name = filters.property_name
            and filtered_values.operator = filters.operator
            and {{ filter_is_met('filtered_values.value_text', 'filters.operator', 'filters.filter_value') }}
    where (filters.metric_code is null) <> (filtered_values.operator = 'not_in')

),

{# The residual metric counts an event only if no other metric does. #}
residual_events_counted_elsewhere as (

    select distinct
        residual_events.delivery_id,
        residual_events.metric_code
    from metric_events as residual_events
    inner join metric_events
        on residual_events.delivery_id = metric_events.delivery_id
    left join metric_events_filtered_out
        on
            metric_events.delivery_id = metric_events_filtered_out.delivery_id
            and metric_events.metric_code = metric_events_filtered_out.metric_code
    where
        residual_events.is_residual
        and not metric_events.is_residual
        and metric_events_filtered_out.delivery_id is null

),

metric_events_excluded as (

    select * from metric_events_filtered_out

    union all

    select * from residual_events_counted_elsewhere

),

metered_events as (

    select
        metric_events.metric_code,
        metric_events.definition_hash,
        metric_events.aggregation,
        metric_events.customer_id,
        metric_events.occurred_at,
        metric_events.hour_start_at,
        {{ dimensions_text('metric_events.properties', [
            'metric_events.dimension_1_property',
            'metric_events.dimension_2_property',
            'metric_events.dimension_3_property',
        ]) }} as dimensions,
        {{ dimensions_text('metric_events.properties', [
            'metric_events.presentation_1_property',
            'metric_events.presentation_2_property',
            'metric_events.presentation_3_property',
        ]) }} as presentation_dimensions,
        case
            when metric_events.aggregation not in ('count', 'unique_count')
                then cast(
                    {{ json_text('metric_events.properties', 'metric_events.property_name') }} as {{ quantity_type() }}
                )
        end as measured_value,
        {# What must be told apart inside a window to stay exact. #}
        case
            when metric_events.keeps_each_event then metric_events.idempotency_key
            when metric_events.aggregation in ('unique_count', 'percentile')
                then {{ json_text('metric_events.properties', 'metric_events.property_name') }}
            when metric_events.aggregation = 'latest' then {{ timestamp_text('metric_events.occurred_at') }}
            else ''
        end as distinct_value,
        coalesce(window_splits.window_start_at, metric_events.hour_start_at) as window_start_at,
        coalesce(
            window_splits.window_end_at,
            {{ dbt.dateadd('hour', 1, 'metric_events.hour_start_at') }}
        ) as window_end_at
    from metric_events
    left join metric_events_excluded
        on
            metric_events.delivery_id = metric_events_excluded.delivery_id
            and metric_events.metric_code = metric_events_excluded.metric_code
    left join window_splits
        on
            metric_events.customer_id = window_splits.customer_id
            and metric_events.hour_start_at = window_splits.hour_start_at
            and metric_events.occurred_at >= window_splits.window_start_at
            and metric_events.occurred_at < window_splits.window_end_at
    where metric_events_excluded.delivery_id is null

),

usage_hourly as (

    select
        {{ surrogate_key([
            'metric_code', 'customer_id', 'dimensions', 'presentation_dimensions', 'distinct_value',
            timestamp_text('window_start_at')
        ]) }} as usage_hourly_id,
        metric_code,
        definition_hash,
        aggregation,
        customer_id,
        dimensions,
        presentation_dimensions,
        distinct_value,
        cast(
            case
                when aggregation = 'count' then count(*)
                when aggregation in ('sum', 'average', 'weighted_sum') then sum(measured_value)
                when aggregation = 'min' then min(measured_value)
                when aggregation in ('max', 'latest', 'percentile') then max(measured_value)
            end as {{ quantity_total_type() }}
        ) as quantity,
        cast(
            case
                when aggregation = 'weighted_sum'
                    then sum(measured_value * {{ dbt.datediff('occurred_at', 'window_end_at', 'microsecond') }})
            end as {{ quantity_total_type() }}
        ) as quantity_microseconds,
        count(*) as event_count,
        min(occurred_at) as first_event_at,
        max(occurred_at) as last_event_at,
        hour_start_at,
        window_start_at,
        window_end_at
    from metered_events
    group by
        metric_code,
        definition_hash,
        aggregation,
        customer_id,
        dimensions,
        presentation_dimensions,
        distinct_value,
        hour_start_at,
        window_start_at,
        window_end_at

),

{% if is_incremental() %}

{# What was metered before in the same scope and is not any more stays as a row without events: rows cannot be deleted here. #}
usage_no_longer_metered as (

    select
        metered.usage_hourly_id,
        metered.metric_code,
        coalesce(definitions.definition_hash, metered.definition_hash) as definition_hash,
        metered.aggregation,
        metered.customer_id,
        metered.dimensions,
        metered.presentation_dimensions,
        metered.distinct_value,
        cast(null as {{ quantity_total_type() }}) as quantity,
        cast(null as {{ quantity_total_type() }}) as quantity_microseconds,
        0 as event_count,
        metered.first_event_at,
        metered.last_event_at,
        metered.hour_start_at,
        metered.window_start_at,
        metered.window_end_at
    from metered
    left join hours_to_meter
        on
            metered.customer_id = hours_to_meter.customer_id
            and metered.hour_start_at = hours_to_meter.hour_start_at
    left join definitions
        on metered.metric_code = definitions.metric_code
    left join usage_hourly
        on metered.usage_hourly_id = usage_hourly.usage_hourly_id
    where
        usage_hourly.usage_hourly_id is null
        and metered.event_count > 0
        and (
            hours_to_meter.customer_id is not null
            or definitions.metric_code is null
            or definitions.definition_hash <> metered.definition_hash
        )

),

{% endif %}

{# Says by which definition a metric has been metered over all of history, also one that has found no event yet. #}
definition_markers as (

    select
        metric_code,
        definition_hash,
        aggregation
    from {{ 'definitions_to_meter' if is_incremental() else 'definitions' }}

    {% if is_incremental() %}
    union all

    select
        metered.metric_code,
        'removed' as definition_hash,
        metered.aggregation
    from metered
    left join definitions
        on metered.metric_code = definitions.metric_code
    where
        metered.customer_id is null
        and definitions.metric_code is null
    {% endif %}

),

usage_hourly_to_write as (

    select * from usage_hourly

    union all

    select
        {{ surrogate_key(['metric_code', "'definition'"]) }} as usage_hourly_id,
        metric_code,
        definition_hash,
        aggregation,
        cast(null as varchar) as customer_id,
        cast(null as varchar) as dimensions,
        cast(null as varchar) as presentation_dimensions,
        cast(null as varchar) as distinct_value,
        cast(null as {{ quantity_total_type() }}) as quantity,
        cast(null as {{ quantity_total_type() }}) as quantity_microseconds,
        0 as event_count,
        cast(null as datetime) as first_event_at,
        cast(null as datetime) as last_event_at,
        cast(null as datetime) as hour_start_at,
        cast(null as datetime) as window_start_at,
        cast(null as datetime) as window_end_at
    from definition_markers

    {% if is_incremental() %}
    union all

    select * from usage_no_longer_metered
    {% endif %}

),

usage_hourly_sequenced as (

    select
        usage_hourly_to_write.*,
        (
            select coalesce(max(deliveries.stage_sequence), 0)
            from {{ ref('stg_event_deliveries') }} as deliveries
        ) as stage_sequence
    from usage_hourly_to_write

)

select * from usage_hourly_sequenced
