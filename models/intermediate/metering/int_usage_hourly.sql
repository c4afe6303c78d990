{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key='usage_hourly_id'
) }}

with

usage_events {{ as_inlined() }} (

    select * from {{ ref('stg_usage_events') }}

),

events_not_metered as (

    select * from {{ ref('int_events_not_metered') }}

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

exclusions as (

    select
        customer_id,
        occurred_hour_at as hour_start_at,
        sum({{ event_key_number('idempotency_key') }}) as event_keys_hash
    from events_not_metered
    group by customer_id, occurred_hour_at

),

{% if is_incremental() %}

metered {{ as_inlined() }} (

    select * from {{ this }}

),

{# A delivery that was accepted before and no longer is touches its hour as much as a new one; a new copy does not. #}
hours_with_changed_deliveries as (

    select distinct
        customer_id,
        occurred_hour_at as hour_start_at
    from {{ ref('stg_event_deliveries') }}
    where
        stage_sequence > (select coalesce(max(metered.stage_sequence), 0) from metered)
        and (delivery_status = 'accepted' or is_restated)
        and customer_id is not null
        and occurred_at is not null

),

hours_with_splits as (

    select distinct
        customer_id,
        hour_start_at
    from window_splits

),

{# Only what is split, or was when it was metered, can have moved. #}
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
            metered.customer_id,
            metered.hour_start_at,
            metered.window_start_at,
            metered.window_end_at
        from metered
        left join hours_with_splits
            on
                metered.customer_id = hours_with_splits.customer_id
                and metered.hour_start_at = hours_with_splits.hour_start_at
        where
            metered.event_count > 0
            and (
                hours_with_splits.customer_id is not null
                or metered.window_start_at <> metered.hour_start_at
                or metered.window_end_at <> {{ dbt.dateadd('hour', 1, 'metered.hour_start_at') }}
            )
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

metered_exclusions as (

    select
        customer_id,
        hour_start_at,
        event_keys_hash
    from metered
    where metric_code is null

),

{# Which events of the hour are left out has changed: by a correction of them, or by a decision on late ones. #}
changed_exclusions as (

    select
        coalesce(exclusions.customer_id, metered_exclusions.customer_id) as customer_id,
        coalesce(exclusions.hour_start_at, metered_exclusions.hour_start_at) as hour_start_at,
        coalesce(exclusions.event_keys_hash, 0) as event_keys_hash
    from exclusions
    full outer join metered_exclusions
        on
            exclusions.customer_id = metered_exclusions.customer_id
            and exclusions.hour_start_at = metered_exclusions.hour_start_at
    where coalesce(exclusions.event_keys_hash, 0) <> coalesce(metered_exclusions.event_keys_hash, 0)

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
    from changed_exclusions

    union

    select
        customer_id,
        hour_start_at
    from hours_with_moved_boundaries

),

{# Of all customers, so that one column alone, which is in order of time, lets the engine skip the rest of history. #}
full_hours_to_meter as (

    select distinct hour_start_at from hours_to_meter

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
event_types_to_meter as (

    select distinct event_type
    from definitions
    where
        not exists (
            select 1
            from metered_definitions
            where
                metered_definitions.metric_code = definitions.metric_code
                and metered_definitions.definition_hash = definitions.definition_hash
        )

),

events_of_hours_to_meter as (

    select usage_events.*
    from usage_events
    inner join hours_to_meter
        on
            usage_events.customer_id = hours_to_meter.customer_id
            and usage_events.occurred_hour_at = hours_to_meter.hour_start_at
    where usage_events.occurred_hour_at in (select full_hours_to_meter.hour_start_at from full_hours_to_meter)

),

events_to_meter {{ as_inlined() if not is_incremental() else "as" }} (

    select * from events_of_hours_to_meter

    union all

    select usage_events.*
    from usage_events
    inner join event_types_to_meter
        on usage_events.event_type = event_types_to_meter.event_type
    where
        not exists (
            select 1
            from hours_to_meter
            where
                hours_to_meter.customer_id = usage_events.customer_id
                and hours_to_meter.hour_start_at = usage_events.occurred_hour_at
        )

),

{% else %}

events_to_meter {{ as_inlined() if not is_incremental() else "as" }} (

    select * from usage_events

),

{% endif %}

events_in_windows {{ as_inlined() if not is_incremental() else "as" }} (

    select
        events_to_meter.idempotency_key,
        events_to_meter.customer_id,
        events_to_meter.event_type,
        events_to_meter.properties,
        events_to_meter.occurred_at,
        events_to_meter.occurred_hour_at as hour_start_at,
        coalesce(
            window_splits.window_start_at,
            events_to_meter.occurred_hour_at
        ) as window_start_at,
        coalesce(
            window_splits.window_end_at,
            {{ dbt.dateadd('hour', 1, 'events_to_meter.occurred_hour_at') }}
        ) as window_end_at
    from events_to_meter
    left join window_splits
        on
            events_to_meter.customer_id = window_splits.customer_id
            and events_to_meter.occurred_hour_at = window_splits.hour_start_at
            and events_to_meter.occurred_at >= window_splits.window_start_at
            and events_to_meter.occurred_at < window_splits.window_end_at
    where
        not exists (
            select 1
            from events_not_metered
            where events_not_metered.idempotency_key = events_to_meter.idempotency_key
        )

),

{{ aggregation_layouts('definitions', 'filters') }},

events_with_values as (

    select
        events.customer_id,
        events.occurred_at,
        events.hour_start_at,
        events.window_start_at,
        events.window_end_at,
        {%- for slot in key_slots() %}
        {{ json_text('events.properties', 'layouts.key_path_' ~ slot) }} as key_value_{{ slot }},
        {%- endfor %}
        {%- for slot in value_slots() %}
        cast({{ json_text('events.properties', 'layouts.value_path_' ~ slot) }} as {{ quantity_type() }}) as value_{{ slot }},
        {%- endfor %}
        {{ event_key_number('events.idempotency_key') }} as event_key_number,
        layouts.layout_id
    from events_in_windows as events
    inner join layouts
        on events.event_type = layouts.event_type

),

{# Metrics that count, add up or compare share one pass over the events, which are grouped once for all of them by what their
   dimensions and filters look at. #}
event_groups as (

    select
        customer_id,
        hour_start_at,
        window_start_at,
        window_end_at,
        {%- for slot in key_slots() %}
        key_value_{{ slot }},
        {%- endfor %}
        {%- for slot in value_slots() %}
        sum(value_{{ slot }}) as sum_{{ slot }},
        min(value_{{ slot }}) as min_{{ slot }},
        max(value_{{ slot }}) as max_{{ slot }},
        {%- endfor %}
        count(*) as event_count,
        sum(event_key_number) as event_keys_hash,
        min(occurred_at) as first_event_at,
        max(occurred_at) as last_event_at,
        layout_id
    from events_with_values
    group by
        customer_id,
        hour_start_at,
        window_start_at,
        window_end_at,
        {%- for slot in key_slots() %}
        key_value_{{ slot }},
        {%- endfor %}
        layout_id

),

{% set key_names, key_values = [], [] %}
{% for slot in key_slots() %}
{% do key_names.append('layouts.key_property_' ~ slot) %}
{% do key_values.append('event_groups.key_value_' ~ slot) %}
{% endfor %}
event_groups_with_properties as (

    select
        event_groups.*,
        {{ properties_text(key_names, key_values) }} as properties
    from event_groups
    inner join layouts
        on event_groups.layout_id = layouts.layout_id

),

{% set definition_columns = [
    'metric_code', 'event_type', 'definition_hash', 'aggregation', 'is_residual', 'dimension_1_property', 'dimension_2_property',
    'dimension_3_property', 'presentation_1_property', 'presentation_2_property', 'presentation_3_property'
] %}
{% set measured_value %}
        case
            when definitions.aggregation <> 'unique_count'
                then cast({{ json_text('usage.properties', json_path('definitions.property_name')) }} as {{ quantity_type() }})
        end
{%- endset %}
{# From groups of events, or from single events where more must be told apart. #}
usage_by_properties as (

    select
        {%- for column in definition_columns %}
        definitions.{{ column }},
        {%- endfor %}
        usage.customer_id,
        usage.properties,
        '' as distinct_value,
        {%- for value in ['sum', 'min', 'max'] %}
        case definitions.value_slot
            {%- for slot in value_slots() %}
            when {{ slot }} then usage.{{ value }}_{{ slot }}
            {%- endfor %}
        end as value_{{ value }},
        {%- endfor %}
        cast(null as {{ quantity_total_type() }}) as value_microseconds,
        usage.event_count,
        usage.event_keys_hash,
        usage.first_event_at,
        usage.last_event_at,
        usage.hour_start_at,
        usage.window_start_at,
        usage.window_end_at
    from event_groups_with_properties as usage
    inner join shared_metrics as definitions
        on usage.layout_id = definitions.layout_id

    union all

    select
        {%- for column in definition_columns %}
        definitions.{{ column }},
        {%- endfor %}
        usage.customer_id,
        usage.properties,
        {# What must be told apart inside a window to stay exact. #}
        case
            when definitions.keeps_each_event then usage.idempotency_key
            when definitions.aggregation in ('unique_count', 'percentile')
                then {{ json_text('usage.properties', json_path('definitions.property_name')) }}
            when definitions.aggregation = 'latest' then {{ timestamp_text('usage.occurred_at') }}
            else ''
        end as distinct_value,
        {%- for value in ['sum', 'min', 'max'] %}
        {{ measured_value | trim }} as value_{{ value }},
        {%- endfor %}
        case
            when definitions.aggregation = 'weighted_sum'
                then cast(
                    {{ measured_value | trim }} * {{ dbt.datediff('usage.occurred_at', 'usage.window_end_at', 'microsecond') }}
                    as {{ quantity_total_type() }}
                )
        end as value_microseconds,
        cast(1 as bigint) as event_count,
        {{ event_key_number('usage.idempotency_key') }} as event_keys_hash,
        usage.occurred_at as first_event_at,
        usage.occurred_at as last_event_at,
        usage.hour_start_at,
        usage.window_start_at,
        usage.window_end_at
    from events_in_windows as usage
    inner join definitions
        on usage.event_type = definitions.event_type
    where
        not exists (
            select 1
            from shared_metrics
            where shared_metrics.metric_code = definitions.metric_code
        )

),

filtered_metrics as (

    select distinct metric_code from filters

),

definitions_with_filters as (

    select
        definitions.*,
        filtered_metrics.metric_code is not null as is_filtered
    from definitions
    left join filtered_metrics
        on definitions.metric_code = filtered_metrics.metric_code

),

{# The residual metric counts what no other metric of its event type does, so it looks at the filters of all of them. #}
property_sets_to_filter as (

    select distinct
        usage.metric_code,
        usage.properties,
        definitions.metric_code as filtered_metric_code
    from usage_by_properties as usage
    inner join definitions_with_filters as definitions
        on
            usage.event_type = definitions.event_type
            and (
                (usage.is_residual and not definitions.is_residual)
                or (usage.metric_code = definitions.metric_code and definitions.is_filtered)
            )

),

filter_groups as (

    select distinct
        metric_code,
        property_name,
        operator
    from filters

),

filtered_values as (

    select
        property_sets_to_filter.*,
        filter_groups.property_name,
        filter_groups.operator,
        {{ json_text('property_sets_to_filter.properties', json_path('filter_groups.property_name')) }} as value_text
    from property_sets_to_filter
    inner join filter_groups
        on property_sets_to_filter.filtered_metric_code = filter_groups.metric_code

),

{# Only not_in is met by meeting no row; every other operator by meeting one. #}
property_sets_filtered_out as (

    select distinct
        filtered_values.metric_code,
        filtered_values.properties,
        filtered_values.filtered_metric_code
    from filtered_values
    left join filters
        on
            filtered_values.filtered_metric_code = filters.metric_code
            and filtered_values.property_name = filters.property_name
            and filtered_values.operator = filters.operator
            and {{ filter_is_met('filtered_values.value_text', 'filters.operator', 'filters.filter_value') }}
    where (filters.metric_code is null) <> (filtered_values.operator = 'not_in')

),

property_sets_not_counted as (

    select
        metric_code,
        properties
    from property_sets_filtered_out
    where metric_code = filtered_metric_code

    union

    select
        counted_elsewhere.metric_code,
        counted_elsewhere.properties
    from property_sets_to_filter as counted_elsewhere
    left join property_sets_filtered_out
        on
            counted_elsewhere.metric_code = property_sets_filtered_out.metric_code
            and counted_elsewhere.properties = property_sets_filtered_out.properties
            and counted_elsewhere.filtered_metric_code = property_sets_filtered_out.filtered_metric_code
    where
        counted_elsewhere.metric_code <> counted_elsewhere.filtered_metric_code
        and property_sets_filtered_out.metric_code is null

),

metered_usage as (

    select
        usage.*,
        {{ dimensions_text('usage.properties', [
            'usage.dimension_1_property',
            'usage.dimension_2_property',
            'usage.dimension_3_property',
        ]) }} as dimensions,
        {{ dimensions_text('usage.properties', [
            'usage.presentation_1_property',
            'usage.presentation_2_property',
            'usage.presentation_3_property',
        ]) }} as presentation_dimensions
    from usage_by_properties as usage
    left join property_sets_not_counted
        on
            usage.metric_code = property_sets_not_counted.metric_code
            and usage.properties = property_sets_not_counted.properties
    where property_sets_not_counted.metric_code is null

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
                when aggregation = 'count' then sum(event_count)
                when aggregation in ('sum', 'average', 'weighted_sum') then sum(value_sum)
                when aggregation = 'min' then min(value_min)
                when aggregation in ('max', 'latest', 'percentile') then max(value_max)
            end as {{ quantity_total_type() }}
        ) as quantity,
        cast(sum(value_microseconds) as {{ quantity_total_type() }}) as quantity_microseconds,
        cast(sum(event_count) as bigint) as event_count,
        cast(sum(event_keys_hash) as {{ event_keys_hash_type() }}) as event_keys_hash,
        min(first_event_at) as first_event_at,
        max(last_event_at) as last_event_at,
        hour_start_at,
        window_start_at,
        window_end_at
    from metered_usage
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

metrics_redefined as (

    select metered_definitions.metric_code
    from metered_definitions
    left join definitions
        on
            metered_definitions.metric_code = definitions.metric_code
            and metered_definitions.definition_hash = definitions.definition_hash
    where
        definitions.metric_code is null
        and metered_definitions.definition_hash <> 'removed'

),

metered_in_scope as (

    select metered.*
    from metered
    inner join hours_to_meter
        on
            metered.customer_id = hours_to_meter.customer_id
            and metered.hour_start_at = hours_to_meter.hour_start_at
    where metered.hour_start_at in (select full_hours_to_meter.hour_start_at from full_hours_to_meter)

    union

    select metered.*
    from metered
    inner join metrics_redefined
        on metered.metric_code = metrics_redefined.metric_code

),

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
        cast(0 as bigint) as event_count,
        cast(0 as {{ event_keys_hash_type() }}) as event_keys_hash,
        metered.first_event_at,
        metered.last_event_at,
        metered.hour_start_at,
        metered.window_start_at,
        metered.window_end_at
    from metered_in_scope as metered
    left join definitions
        on metered.metric_code = definitions.metric_code
    left join usage_hourly
        on metered.usage_hourly_id = usage_hourly.usage_hourly_id
    where
        usage_hourly.usage_hourly_id is null
        and metered.event_count > 0

),

{% endif %}

{# Says by which definition a metric has been metered over all of history, also one that has found no event yet. #}
definition_markers as (

    select
        metric_code,
        definition_hash,
        aggregation
    from definitions
    {%- if is_incremental() %}
    where event_type in (select event_types_to_meter.event_type from event_types_to_meter)
    {%- endif %}

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
        cast(0 as bigint) as event_count,
        cast(0 as {{ event_keys_hash_type() }}) as event_keys_hash,
        cast(null as datetime) as first_event_at,
        cast(null as datetime) as last_event_at,
        cast(null as datetime) as hour_start_at,
        cast(null as datetime) as window_start_at,
        cast(null as datetime) as window_end_at
    from definition_markers

    union all

    {# Says which events of the hour were left out. #}
    select
        {{ surrogate_key(['customer_id', timestamp_text('hour_start_at'), "'exclusions'"]) }} as usage_hourly_id,
        cast(null as varchar) as metric_code,
        cast(null as varchar) as definition_hash,
        cast(null as varchar) as aggregation,
        customer_id,
        cast(null as varchar) as dimensions,
        cast(null as varchar) as presentation_dimensions,
        cast(null as varchar) as distinct_value,
        cast(null as {{ quantity_total_type() }}) as quantity,
        cast(null as {{ quantity_total_type() }}) as quantity_microseconds,
        cast(0 as bigint) as event_count,
        cast(event_keys_hash as {{ event_keys_hash_type() }}) as event_keys_hash,
        cast(null as datetime) as first_event_at,
        cast(null as datetime) as last_event_at,
        hour_start_at,
        cast(null as datetime) as window_start_at,
        cast(null as datetime) as window_end_at
    from {{ 'changed_exclusions' if is_incremental() else 'exclusions' }}

    {% if is_incremental() %}
    union all

    select * from usage_no_longer_metered
    {% endif %}

),

usage_hourly_sequenced as (

    select
        usage_hourly_to_write.*,
        cast(
            (
                select coalesce(max(deliveries.stage_sequence), 0)
                from {{ ref('stg_event_deliveries') }} as deliveries
            ) as bigint
        ) as stage_sequence
    from usage_hourly_to_write

)

select * from usage_hourly_sequenced
