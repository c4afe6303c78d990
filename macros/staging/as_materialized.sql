{% macro as_materialized() -%}
    {{ return(adapter.dispatch('as_materialized', 'metering')()) }}
{%- endmacro %}

{% macro duckdb__as_materialized() -%} as materialized {%- endmacro %}

{% macro default__as_materialized() -%} as {%- endmacro %}
