{% macro json_canonical(document) -%}
    {{ return(adapter.dispatch('json_canonical', 'metering')(document)) }}
{%- endmacro %}

{% macro duckdb__json_canonical(document) -%}
    array_to_string(
        list_sort(list_transform(
            json_keys({{ document }}),
            {#- A JSON pointer, since in a path some characters of a name would be wildcards. #}
            lambda property: property || '='
                || cast(json_extract({{ document }}, '/' || replace(replace(property, '~', '~0'), '/', '~1')) as varchar)
        )),
        chr(10)
    )
{%- endmacro %}

{% macro snowflake__json_canonical(document) -%}
    to_json(parse_json({{ document }}))
{%- endmacro %}
