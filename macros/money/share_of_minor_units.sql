{# Whole numbers only: minor × part ÷ whole, none negative; floor, half_up or the remainder of the division. Millions first, so that
   the product stays below the 32 digits that an engine may have for a quotient. #}
{% macro share_of_minor_units(minor, part, whole, rounding) -%}
    {%- set digits -%} cast({{ minor }} as {{ whole_number_type() }}) {%- endset -%}
    {%- set weight -%} cast({{ part }} as {{ whole_number_type() }}) {%- endset -%}
    {%- set divisor -%} cast({{ whole }} as {{ whole_number_type() }}) {%- endset -%}
    {%- set millions -%} {{ whole_millions(digits) }} * {{ weight }} {%- endset -%}
    {%- set remainder -%}
        (mod({{ millions }}, {{ divisor }}) * 1000000 + mod({{ digits }}, 1000000) * {{ weight }})
    {%- endset -%}
    {%- if rounding == 'remainder' -%}
    mod({{ remainder }}, {{ divisor }})
    {%- else -%}
    cast(
        {{ divide_whole(millions, divisor) }} * 1000000
        + {% if rounding == 'floor' -%}
        {{ divide_whole(remainder, divisor) }}
        {%- else -%}
        {{ divide_whole('2 * ' ~ remainder ~ ' + ' ~ divisor, '2 * ' ~ divisor) }}
        {%- endif %}
        as bigint
    )
    {%- endif -%}
{%- endmacro %}
