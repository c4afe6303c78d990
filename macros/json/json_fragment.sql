{% macro json_fragment(document, path) -%}
    {{ return(adapter.dispatch('json_fragment', 'metering')(document, path)) }}
{%- endmacro %}

{% macro duckdb__json_fragment(document, path) -%}
    cast(json_extract({{ document }}, {{ path }}) as varchar)
{%- endmacro %}

{% macro snowflake__json_fragment(document, path) -%}
    to_json(get(try_parse_json({{ document }}), {{ path }}))
{%- endmacro %}
