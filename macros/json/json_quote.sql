{% macro json_quote(text) -%}
    {{ return(adapter.dispatch('json_quote', 'metering')(text)) }}
{%- endmacro %}

{% macro duckdb__json_quote(text) -%}
    coalesce(cast(to_json({{ text }}) as varchar), 'null')
{%- endmacro %}

{% macro snowflake__json_quote(text) -%}
    coalesce(to_json(to_variant({{ text }})), 'null')
{%- endmacro %}
