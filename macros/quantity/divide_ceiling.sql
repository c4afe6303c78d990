{% macro divide_ceiling(quantity, divisor) -%}
    {%- set divisor_digits = whole_digits(divisor, quantity_total_type()) -%}
    cast(
        {{ divide_whole(whole_digits(quantity, quantity_total_type()) ~ ' + ' ~ divisor_digits ~ ' - 1', divisor_digits) }}
        as {{ quantity_total_type() }}
    )
{%- endmacro %}
