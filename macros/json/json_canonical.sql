{% macro json_canonical(document) -%}
    {{ return(adapter.dispatch('json_canonical', 'metering')(document)) }}
{%- endmacro %}

{% macro duckdb__json_canonical(document) -%}
    array_to_string(
        list_sort(list_transform(
            json_keys({{ document }}),
            lambda property: property || '=' || {{ json_fragment(document, json_path('property')) }}
        )),
        chr(10)
    )
{%- endmacro %}

{% macro snowflake__json_canonical(document) -%}
    to_json(try_parse_json({{ document }}))
{%- endmacro %}
