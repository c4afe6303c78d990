{% macro divide_floor(quantity, divisor) -%}
    {{ return(adapter.dispatch('divide_floor', 'metering')(quantity, divisor)) }}
{%- endmacro %}

{# Division of decimals is a double on DuckDB; on whole nano-units it is exact. #}
{% macro duckdb__divide_floor(quantity, divisor) -%}
    cast(
        {{ whole_digits(quantity, quantity_total_type()) }} // {{ whole_digits(divisor, quantity_total_type()) }}
        as {{ quantity_total_type() }}
    )
{%- endmacro %}

{% macro default__divide_floor(quantity, divisor) -%}
    cast(({{ quantity }} - mod({{ quantity }}, {{ divisor }})) / {{ divisor }} as {{ quantity_total_type() }})
{%- endmacro %}
