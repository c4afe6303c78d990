{# Which metrics can be metered from groups of events, and what the groups are. CTEs that end with layouts and shared_metrics. #}
{% macro aggregation_layouts(definitions, filters) -%}
    {%- set dimensions = ['dimension_1_property', 'dimension_2_property', 'dimension_3_property',
        'presentation_1_property', 'presentation_2_property', 'presentation_3_property'] -%}
    groupable_metrics as (

        select * from {{ definitions }}
        where
            aggregation in ('count', 'sum', 'average', 'min', 'max')
            and not coalesce(keeps_each_event, false)

    ),

    key_properties as (

        {% for dimension in dimensions -%}
        select
            event_type,
            {{ dimension }} as property_name
        from groupable_metrics
        where {{ dimension }} is not null

        union

        {% endfor -%}
        select
            definitions.event_type,
            filters.property_name
        from {{ filters }} as filters
        inner join {{ definitions }} as definitions
            on filters.metric_code = definitions.metric_code

    ),

    key_properties_numbered as (

        select
            event_type,
            property_name,
            row_number() over (partition by event_type order by property_name) - 1 as slot,
            count(*) over (partition by event_type) as property_count
        from key_properties

    ),

    keys_by_event_type as (

        select
            {%- for slot in key_slots() %}
            max(case when slot = {{ slot }} then property_name end) as key_property_{{ slot }},
            {%- endfor %}
            max(property_count) as property_count,
            event_type
        from key_properties_numbered
        group by event_type

    ),

    value_properties as (

        select distinct
            event_type,
            case when aggregation <> 'count' then property_name end as property_name
        from groupable_metrics

    ),

    {# Metrics that only count take part in the first layout, whose first value may be none. #}
    value_properties_numbered as (

        select
            event_type,
            property_name,
            row_number() over (
                partition by event_type
                order by case when property_name is null then 0 else 1 end, property_name
            ) - 1 as number
        from value_properties

    ),

    value_properties_laid_out as (

        select
            event_type,
            property_name,
            event_type || ':' || cast(cast(floor(number / {{ value_slots() | length }}) as integer) as varchar) as layout_id,
            mod(number, {{ value_slots() | length }}) as slot
        from value_properties_numbered

    ),

    layouts as (

        select
            values_laid_out.layout_id,
            values_laid_out.event_type,
            {%- for slot in key_slots() %}
            keys_by_event_type.key_property_{{ slot }},
            {{ json_path('keys_by_event_type.key_property_' ~ slot) }} as key_path_{{ slot }},
            {%- endfor %}
            {%- for slot in value_slots() %}
            max(case when values_laid_out.slot = {{ slot }} then {{ json_path('values_laid_out.property_name') }} end)
                as value_path_{{ slot }}
            {{- ',' if not loop.last }}
            {%- endfor %}
        from value_properties_laid_out as values_laid_out
        left join keys_by_event_type
            on values_laid_out.event_type = keys_by_event_type.event_type
        where coalesce(keys_by_event_type.property_count, 0) <= {{ key_slots() | length }}
        group by
            values_laid_out.layout_id,
            {%- for slot in key_slots() %}
            keys_by_event_type.key_property_{{ slot }},
            {%- endfor %}
            values_laid_out.event_type

    ),

    shared_metrics as (

        select
            groupable_metrics.*,
            values_laid_out.layout_id,
            values_laid_out.slot as value_slot
        from groupable_metrics
        inner join value_properties_laid_out as values_laid_out
            on
                groupable_metrics.event_type = values_laid_out.event_type
                and coalesce(case when groupable_metrics.aggregation <> 'count' then groupable_metrics.property_name end, '')
                = coalesce(values_laid_out.property_name, '')
        inner join layouts
            on values_laid_out.layout_id = layouts.layout_id

    )
{%- endmacro %}
