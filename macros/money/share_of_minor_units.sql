{% macro share_of_minor_units(minor, part, whole, rounding) -%}
    {{ return(adapter.dispatch('share_of_minor_units', 'metering')(minor, part, whole, rounding)) }}
{%- endmacro %}

{# Whole numbers only: minor × part ÷ whole, none negative; floor, half_up or the remainder of the division. #}
{% macro duckdb__share_of_minor_units(minor, part, whole, rounding) -%}
    {%- set product -%} cast({{ minor }} as hugeint) * cast({{ part }} as hugeint) {%- endset -%}
    {%- if rounding == 'floor' -%}
    cast({{ product }} // cast({{ whole }} as hugeint) as bigint)
    {%- elif rounding == 'remainder' -%}
    {{ product }} % cast({{ whole }} as hugeint)
    {%- else -%}
    cast((2 * {{ product }} + cast({{ whole }} as hugeint)) // (2 * cast({{ whole }} as hugeint)) as bigint)
    {%- endif -%}
{%- endmacro %}

{% macro default__share_of_minor_units(minor, part, whole, rounding) -%}
    {%- set product -%} cast({{ minor }} as decimal(38, 0)) * {{ part }} {%- endset -%}
    {%- if rounding == 'floor' -%}
    cast(({{ product }} - mod({{ product }}, {{ whole }})) / {{ whole }} as bigint)
    {%- elif rounding == 'remainder' -%}
    mod({{ product }}, {{ whole }})
    {%- else -%}
    cast((2 * {{ product }} + {{ whole }} - mod(2 * {{ product }} + {{ whole }}, 2 * {{ whole }})) / (2 * {{ whole }}) as bigint)
    {%- endif -%}
{%- endmacro %}
