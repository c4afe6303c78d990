{# One below another in double quotes, as JSON has them. JSON text has neither a line break nor a bare quote inside, so what is found
   in here is one whole value. Values that JSON writes in another way are left out: null. #}
{% macro quoted_values(values) -%}
    case
        when not contains({{ values }}, '"') and not contains({{ values }}, chr(92))
            then '"' || replace({{ values }}, '|', '"' || chr(10) || '"') || '"'
    end
{%- endmacro %}
