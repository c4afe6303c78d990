{% macro json_fragment(document, property_name) -%}
    {{ return(adapter.dispatch('json_fragment', 'metering')(document, property_name)) }}
{%- endmacro %}

{% macro duckdb__json_fragment(document, property_name) -%}
    cast(json_extract({{ document }}, '$."' || {{ property_name }} || '"') as varchar)
{%- endmacro %}

{% macro snowflake__json_fragment(document, property_name) -%}
    to_json(get(parse_json({{ document }}), {{ property_name }}))
{%- endmacro %}
