{# On whole digits, which are exact, and millions first. Whole numbers are taken out before part multiplies, so that nothing outgrows
   the amount. #}
{% macro prorate_amount(amount, part, whole) -%}
    {%- set digits = whole_digits('abs(' ~ amount ~ ')', amount_type()) -%}
    {%- set millions = whole_millions(digits) -%}
    {%- set remainder -%} (mod({{ millions }}, ({{ whole }})) * 1000000 + mod({{ digits }}, 1000000)) {%- endset -%}
    {%- set shares -%}
        {{ divide_whole(millions, whole) }} * 1000000 * ({{ part }})
        + {{ divide_whole(remainder ~ ' * 2 * (' ~ part ~ ') + (' ~ whole ~ ')', '2 * (' ~ whole ~ ')') }}
    {%- endset -%}
    (case when {{ amount }} < 0 then -1 else 1 end * {{ from_whole_digits(shares, amount_type()) }})
{%- endmacro %}
