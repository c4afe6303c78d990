{% macro divide_ceiling(quantity, divisor) -%}
    {{ return(adapter.dispatch('divide_ceiling', 'metering')(quantity, divisor)) }}
{%- endmacro %}

{# Division of decimals is a double on DuckDB; on whole nano-units it is exact. #}
{% macro duckdb__divide_ceiling(quantity, divisor) -%}
    cast(
        ({{ whole_digits(quantity, quantity_total_type()) }} + {{ whole_digits(divisor, quantity_total_type()) }} - 1)
        // {{ whole_digits(divisor, quantity_total_type()) }}
        as {{ quantity_total_type() }}
    )
{%- endmacro %}

{# The dividend minus its remainder divides without one, so no digit is lost to the scale of the quotient. #}
{% macro default__divide_ceiling(quantity, divisor) -%}
    cast(
        ({{ quantity }} - mod({{ quantity }}, {{ divisor }})) / {{ divisor }}
        + case when mod({{ quantity }}, {{ divisor }}) > 0 then 1 else 0 end
        as {{ quantity_total_type() }}
    )
{%- endmacro %}
