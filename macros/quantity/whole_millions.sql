{# Without a division, since an engine may have no more than 32 digits for a quotient. #}
{% macro whole_millions(digits) -%}
    cast(floor({{ from_whole_digits(digits, 'decimal(38, 6)') }}) as {{ whole_number_type() }})
{%- endmacro %}
