{# Times one last decimal: neither an engine that gives a product all decimals of its factors nor one that gives it the more of
   the two loses any. #}
{% macro from_whole_digits(digits, type) -%}
    {%- set scale = type.split(',')[1] | replace(')', '') | int -%}
    cast(
        cast({{ digits }} as decimal(38, 0)) * cast('0.{{ '0' * (scale - 1) }}1' as decimal({{ scale + 1 }}, {{ scale }}))
        as {{ type }}
    )
{%- endmacro %}
