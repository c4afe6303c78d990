with

metrics as (

    select * from {{ ref('billable_metrics') }}

),

dimensions as (

    select * from {{ ref('metric_dimensions') }}

),

filters as (

    select * from {{ ref('metric_filters') }}

),

dimensions_by_metric as (

    select
        metric_code,
        {%- for purpose in ['pricing', 'presentation'] %}
        {{ dbt.listagg(
            measure="case when purpose = '" ~ purpose ~ "' then property_name end",
            delimiter_text="', '",
            order_by_clause='order by dimension_position'
        ) }} as {{ purpose }}_dimensions
        {%- if not loop.last %},{% endif %}
        {%- endfor %}
    from dimensions
    group by metric_code

),

filters_by_metric as (

    select
        metric_code,
        {{ dbt.listagg(
            measure="property_name || ' ' || operator || coalesce(' ' || filter_value, '')",
            delimiter_text="', '",
            order_by_clause='order by property_name, operator, filter_value'
        ) }} as filters
    from filters
    group by metric_code

),

billable_metrics as (

    select
        metrics.metric_code,
        metrics.metric_name,
        metrics.event_type,
        metrics.aggregation,
        metrics.property_name,
        metrics.percentile,
        metrics.metering_period,
        metrics.period_aggregation,
        metrics.unit,
        coalesce(metrics.unit_size, 1) as unit_size,
        metrics.quantity_rounding,
        metrics.quantity_scale,
        {# Of nothing to list Snowflake makes empty text, DuckDB null. #}
        nullif(dimensions_by_metric.pricing_dimensions, '') as pricing_dimensions,
        nullif(dimensions_by_metric.presentation_dimensions, '') as presentation_dimensions,
        filters_by_metric.filters,
        coalesce(metrics.finance_confirmed_on <= cast({{ as_of() }} as date), false) as is_confirmed_by_finance,
        metrics.finance_confirmed_on,
        metrics.description
    from metrics
    left join dimensions_by_metric
        on metrics.metric_code = dimensions_by_metric.metric_code
    left join filters_by_metric
        on metrics.metric_code = filters_by_metric.metric_code

)

select * from billable_metrics
