{% macro as_inlined() -%}
    {{ return(adapter.dispatch('as_inlined', 'metering')()) }}
{%- endmacro %}

{# DuckDB materializes a CTE that is used more than once; of millions of wide rows that costs more than reading them again. #}
{% macro duckdb__as_inlined() -%} as not materialized {%- endmacro %}

{% macro default__as_inlined() -%} as {%- endmacro %}
