{% macro multiply_amount(quantity, unit_amount) -%}
    {{ return(adapter.dispatch('multiply_amount', 'metering')(quantity, unit_amount)) }}
{%- endmacro %}

{% macro default__multiply_amount(quantity, unit_amount) -%}
    cast({{ quantity }} * {{ unit_amount }} as {{ amount_type() }})
{%- endmacro %}

{# Snowflake gives a product 12 decimals, or as many as the factor with more of them has, and may overflow in between. The product
   of the digits has neither trouble: its last digit is the last decimal of an amount. #}
{% macro snowflake__multiply_amount(quantity, unit_amount) -%}
    {{ from_whole_digits(
        whole_digits(quantity, quantity_total_type()) ~ ' * ' ~ whole_digits(unit_amount, price_type()), amount_type()
    ) }}
{%- endmacro %}
