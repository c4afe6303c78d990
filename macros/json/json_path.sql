{% macro json_path(property_name) -%}
    {{ return(adapter.dispatch('json_path', 'metering')(property_name)) }}
{%- endmacro %}

{% macro duckdb__json_path(property_name) -%}
    '$."' || {{ property_name }} || '"'
{%- endmacro %}

{% macro snowflake__json_path(property_name) -%}
    {{ property_name }}
{%- endmacro %}
