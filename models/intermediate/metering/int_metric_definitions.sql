with

metrics as (

    select * from {{ ref('billable_metrics') }}

),

dimensions as (

    select
        metric_code,
        property_name,
        row_number() over (partition by metric_code order by dimension_position) as dimension_rank
    from {{ ref('metric_dimensions') }}

),

filters as (

    select * from {{ ref('metric_filters') }}

),

dimensions_by_metric as (

    select
        metric_code,
        {%- for position in [1, 2, 3] %}
        max(case when dimension_rank = {{ position }} then property_name end) as dimension_{{ position }}_property
        {%- if not loop.last %},{% endif %}
        {%- endfor %}
    from dimensions
    group by metric_code

),

filters_by_metric as (

    select
        metric_code,
        {{ dbt.listagg(
            measure=surrogate_key(['property_name', 'operator', 'filter_value']),
            delimiter_text="','",
            order_by_clause='order by property_name, operator, filter_value'
        ) }} as filter_rules
    from filters
    group by metric_code

),

definitions as (

    select
        metrics.metric_code,
        metrics.event_type,
        metrics.aggregation,
        metrics.property_name,
        dimensions_by_metric.dimension_1_property,
        dimensions_by_metric.dimension_2_property,
        dimensions_by_metric.dimension_3_property,
        filters_by_metric.metric_code is not null as has_filters,
        false as is_residual,
        {{ surrogate_key([
            'metrics.event_type',
            'metrics.aggregation',
            'metrics.property_name',
            'dimensions_by_metric.dimension_1_property',
            'dimensions_by_metric.dimension_2_property',
            'dimensions_by_metric.dimension_3_property',
            'filters_by_metric.filter_rules',
        ]) }} as definition_hash
    from metrics
    left join dimensions_by_metric
        on metrics.metric_code = dimensions_by_metric.metric_code
    left join filters_by_metric
        on metrics.metric_code = filters_by_metric.metric_code

),

{# Where every metric of an event type has filters, an event may meet none of them. It is counted by a residual metric, so
   that it shows among the unbilled usage. #}
residual_definitions as (

    select
        'unmetered:' || event_types.event_type as metric_code,
        event_types.event_type,
        'count' as aggregation,
        cast(null as varchar) as property_name,
        cast(null as varchar) as dimension_1_property,
        cast(null as varchar) as dimension_2_property,
        cast(null as varchar) as dimension_3_property,
        false as has_filters,
        true as is_residual,
        coalesce(
            {{ dbt.listagg(
                measure='definitions.definition_hash',
                delimiter_text="','",
                order_by_clause='order by definitions.metric_code'
            ) }},
            'none'
        ) as definition_hash
    from (select distinct event_type from {{ ref('event_types') }}) as event_types
    left join definitions
        on event_types.event_type = definitions.event_type
    group by event_types.event_type
    having count(case when not definitions.has_filters then 1 end) = 0

),

all_definitions as (

    select * from definitions

    union all

    select * from residual_definitions

)

select * from all_definitions
