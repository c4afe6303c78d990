{% macro json_text(document, path) -%}
    {{ return(adapter.dispatch('json_text', 'metering')(document, path)) }}
{%- endmacro %}

{% macro duckdb__json_text(document, path) -%}
    json_extract_string({{ document }}, {{ path }})
{%- endmacro %}

{% macro snowflake__json_text(document, path) -%}
    cast(get(try_parse_json({{ document }}), {{ path }}) as varchar)
{%- endmacro %}
