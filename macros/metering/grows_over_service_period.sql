{# What such a quantity grows by has a time, and so a price; the others belong to the service period as a whole. #}
{% macro grows_over_service_period(aggregation, period_aggregation) -%}
    (
        {{ aggregation }} = 'weighted_sum'
        or (
            {{ aggregation }} in ('count', 'sum', 'max', 'unique_count')
            and coalesce({{ period_aggregation }}, 'sum') in ('sum', 'max', 'average')
        )
    )
{%- endmacro %}
