{% macro divide_whole(dividend, divisor) -%}
    {{ return(adapter.dispatch('divide_whole', 'metering')(dividend, divisor)) }}
{%- endmacro %}

{% macro duckdb__divide_whole(dividend, divisor) -%}
    (({{ dividend }}) // ({{ divisor }}))
{%- endmacro %}

{# The dividend less its remainder divides without one, so that no digit is lost to the scale of the quotient. #}
{% macro default__divide_whole(dividend, divisor) -%}
    cast((({{ dividend }}) - mod(({{ dividend }}), ({{ divisor }}))) / ({{ divisor }}) as decimal(38, 0))
{%- endmacro %}
