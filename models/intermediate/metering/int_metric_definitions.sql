with

metrics as (

    select * from {{ ref('billable_metrics') }}

),

dimensions as (

    select * from {{ ref('metric_dimensions') }}

),

{# An event of a percentage charge is priced by itself, so its metric keeps a row for each. #}
percentage_charges as (

    select distinct metric_code
    from {{ ref('charges') }}
    where charge_model = 'percentage'

),

filters as (

    select * from {{ ref('metric_filters') }}

),

dimensions_by_metric as (

    select
        {%- for position in [1, 2, 3] %}
        max(case when purpose = 'pricing' and dimension_position = {{ position }} then property_name end)
            as dimension_{{ position }}_property,
        max(case when purpose = 'presentation' and dimension_position = {{ position }} then property_name end)
            as presentation_{{ position }}_property,
        {%- endfor %}
        metric_code
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
        metrics.percentile,
        metrics.metering_period,
        metrics.period_aggregation,
        coalesce(metrics.unit_size, 1) as unit_size,
        metrics.quantity_rounding,
        cast({{ power_of_ten('-coalesce(metrics.quantity_scale, 0)') }} as {{ quantity_type() }}) as quantity_rounding_step,
        {{ grows_over_service_period('metrics.aggregation', 'metrics.period_aggregation') }} as is_cumulative,
        percentage_charges.metric_code is not null as keeps_each_event,
        dimensions_by_metric.dimension_1_property,
        dimensions_by_metric.dimension_2_property,
        dimensions_by_metric.dimension_3_property,
        dimensions_by_metric.presentation_1_property,
        dimensions_by_metric.presentation_2_property,
        dimensions_by_metric.presentation_3_property,
        filters_by_metric.metric_code is not null as has_filters,
        false as is_residual,
        {{ surrogate_key([
            'metrics.event_type',
            'metrics.aggregation',
            'metrics.property_name',
            'dimensions_by_metric.dimension_1_property',
            'dimensions_by_metric.dimension_2_property',
            'dimensions_by_metric.dimension_3_property',
            'dimensions_by_metric.presentation_1_property',
            'dimensions_by_metric.presentation_2_property',
            'dimensions_by_metric.presentation_3_property',
            'percentage_charges.metric_code',
            'filters_by_metric.filter_rules',
        ]) }} as definition_hash
    from metrics
    left join percentage_charges
        on metrics.metric_code = percentage_charges.metric_code
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
        cast(null as decimal(9, 6)) as percentile,
        cast(null as varchar) as metering_period,
        cast(null as varchar) as period_aggregation,
        1 as unit_size,
        cast(null as varchar) as quantity_rounding,
        cast(null as {{ quantity_type() }}) as quantity_rounding_step,
        true as is_cumulative,
        false as keeps_each_event,
        {%- for purpose in ['dimension', 'presentation'] %}
        {%- for position in [1, 2, 3] %}
        cast(null as varchar) as {{ purpose }}_{{ position }}_property,
        {%- endfor %}
        {%- endfor %}
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
