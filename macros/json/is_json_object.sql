{% macro is_json_object(text) -%}
    {{ return(adapter.dispatch('is_json_object', 'metering')(text)) }}
{%- endmacro %}

{# Valid JSON that begins with a brace is an object; asking for its type would read it once more. #}
{% macro duckdb__is_json_object(text) -%}
    (
        case
            when starts_with({{ text }}, '{') then true
            else starts_with(ltrim({{ text }}, ' ' || chr(9) || chr(10) || chr(13)), '{')
        end
        and json_valid({{ text }})
    )
{%- endmacro %}

{% macro snowflake__is_json_object(text) -%}
    coalesce(typeof(try_parse_json({{ text }})) = 'OBJECT', false)
{%- endmacro %}
