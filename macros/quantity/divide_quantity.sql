{# On whole nano-units: (2 × 10⁹ × dividend + divisor) ÷ (2 × divisor), with the quotient taken out first so that nothing
   overflows. #}
{% macro divide_quantity(quantity, divisor) -%}
    {%- set dividend_digits = whole_digits('abs(' ~ quantity ~ ')', quantity_total_type()) -%}
    {%- set divisor_digits = whole_digits(divisor, quantity_total_type()) -%}
    {%- set decimals -%}
        {{ divide_whole(
            'mod(' ~ dividend_digits ~ ', ' ~ divisor_digits ~ ') * 2000000000 + ' ~ divisor_digits, '2 * ' ~ divisor_digits
        ) }}
    {%- endset -%}
    (case when {{ quantity }} < 0 then -1 else 1 end * {{ from_whole_digits(
        divide_whole(dividend_digits, divisor_digits) ~ ' * 1000000000 + ' ~ decimals, quantity_total_type()
    ) }})
{%- endmacro %}
