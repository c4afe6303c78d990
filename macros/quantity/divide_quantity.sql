{# On whole nano-units: (2 × 10⁹ × dividend + divisor) ÷ (2 × divisor), with the quotient taken out first, millions before the rest,
   so that nothing overflows. #}
{% macro divide_quantity(quantity, divisor) -%}
    {%- set dividend_digits = whole_digits('abs(' ~ quantity ~ ')', quantity_total_type()) -%}
    {%- set divisor_digits = whole_digits(divisor, quantity_total_type()) -%}
    {%- set millions = whole_millions(dividend_digits) -%}
    {%- set remainder -%}
        (mod({{ millions }}, {{ divisor_digits }}) * 1000000 + mod({{ dividend_digits }}, 1000000))
    {%- endset -%}
    {%- set decimals -%}
        {{ divide_whole(
            'mod(' ~ remainder ~ ', ' ~ divisor_digits ~ ') * 2000000000 + ' ~ divisor_digits, '2 * ' ~ divisor_digits
        ) }}
    {%- endset -%}
    (case when {{ quantity }} < 0 then -1 else 1 end * {{ from_whole_digits(
        '(' ~ divide_whole(millions, divisor_digits) ~ ' * 1000000 + ' ~ divide_whole(remainder, divisor_digits) ~ ') * 1000000000 + '
        ~ decimals, quantity_total_type()
    ) }})
{%- endmacro %}
