{% macro is_json_object(text) -%}
    {{ return(adapter.dispatch('is_json_object', 'metering')(text)) }}
{%- endmacro %}

{% macro duckdb__is_json_object(text) -%}
    (case when json_valid({{ text }}) then json_type({{ text }}) = 'OBJECT' else false end)
{%- endmacro %}

{% macro snowflake__is_json_object(text) -%}
    coalesce(typeof(try_parse_json({{ text }})) = 'OBJECT', false)
{%- endmacro %}
