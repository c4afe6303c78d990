{% macro divide_quantity(quantity, divisor) -%}
    {{ return(adapter.dispatch('divide_quantity', 'metering')(quantity, divisor)) }}
{%- endmacro %}

{# Division of decimals is a double on DuckDB; on whole nano-units it is exact: (2 × 10⁹ × dividend + divisor) ÷ (2 × divisor),
   with the quotient taken out first so that nothing overflows. #}
{% macro duckdb__divide_quantity(quantity, divisor) -%}
    {%- set dividend = whole_digits('abs(' ~ quantity ~ ')', quantity_total_type()) -%}
    {%- set divisor_digits = whole_digits(divisor, quantity_total_type()) -%}
    cast(
        sign({{ quantity }}) * cast(
            {{ dividend }} // {{ divisor_digits }} * 1000000000
            + ({{ dividend }} % {{ divisor_digits }} * 2000000000 + {{ divisor_digits }}) // (2 * {{ divisor_digits }})
            as decimal(38, 0)
        ) * cast(0.000000001 as decimal(10, 9)) as {{ quantity_total_type() }}
    )
{%- endmacro %}

{% macro default__divide_quantity(quantity, divisor) -%}
    cast(round({{ quantity }} / {{ divisor }}, 9) as {{ quantity_total_type() }})
{%- endmacro %}
