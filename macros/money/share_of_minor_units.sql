{# Whole numbers only: minor × part ÷ whole, none negative; floor, half_up or the remainder of the division. #}
{% macro share_of_minor_units(minor, part, whole, rounding) -%}
    {%- set product -%}
        cast({{ minor }} as {{ whole_number_type() }}) * cast({{ part }} as {{ whole_number_type() }})
    {%- endset -%}
    {%- set divisor -%} cast({{ whole }} as {{ whole_number_type() }}) {%- endset -%}
    {%- if rounding == 'floor' -%}
    cast({{ divide_whole(product, divisor) }} as bigint)
    {%- elif rounding == 'remainder' -%}
    mod({{ product }}, {{ divisor }})
    {%- else -%}
    cast({{ divide_whole('2 * ' ~ product ~ ' + ' ~ divisor, '2 * ' ~ divisor) }} as bigint)
    {%- endif -%}
{%- endmacro %}
