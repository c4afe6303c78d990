{% macro divide_floor(quantity, divisor) -%}
    cast(
        {{ divide_whole(whole_digits(quantity, quantity_total_type()), whole_digits(divisor, quantity_total_type())) }}
        as {{ quantity_total_type() }}
    )
{%- endmacro %}
