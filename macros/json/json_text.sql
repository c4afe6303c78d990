{% macro json_text(document, property_name) -%}
    {{ return(adapter.dispatch('json_text', 'metering')(document, property_name)) }}
{%- endmacro %}

{% macro duckdb__json_text(document, property_name) -%}
    json_extract_string({{ document }}, '$."' || {{ property_name }} || '"')
{%- endmacro %}

{% macro snowflake__json_text(document, property_name) -%}
    cast(get(parse_json({{ document }}), {{ property_name }}) as varchar)
{%- endmacro %}
