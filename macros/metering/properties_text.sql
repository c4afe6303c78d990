{% macro properties_text(names, values) -%}
    '{'
    {%- for name in names %}
    || case
        when {{ name }} is not null
            then {{ "', ' || " if not loop.first }}{{ json_quote(name) }} || ': ' || {{ json_quote(values[loop.index0]) }}
        else ''
    end
    {%- endfor %}
    || '}'
{%- endmacro %}
