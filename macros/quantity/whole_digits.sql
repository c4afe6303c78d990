{# A decimal times ten to the power of its scale, by its digits: a product would overflow long before the integer does. #}
{% macro whole_digits(number, type) -%}
    cast(replace(cast(cast({{ number }} as {{ type }}) as varchar), '.', '') as {{ whole_number_type() }})
{%- endmacro %}
