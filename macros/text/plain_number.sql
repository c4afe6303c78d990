{% macro plain_number(number) -%}
    rtrim(rtrim(cast(cast({{ number }} as {{ quantity_total_type() }}) as varchar), '0'), '.')
{%- endmacro %}
