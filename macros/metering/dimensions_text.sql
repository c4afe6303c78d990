{% macro dimensions_text(properties, property_names) -%}
    '{'
    {%- for property_name in property_names %}
    || case
        when {{ property_name }} is not null
            then {{ "', ' || " if not loop.first }}'"' || {{ property_name }} || '": ' || {{ json_quote(json_text(properties, json_path(property_name))) }}
        else ''
    end
    {%- endfor %}
    || '}'
{%- endmacro %}
