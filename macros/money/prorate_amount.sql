{% macro prorate_amount(amount, part, whole) -%}
    {{ return(adapter.dispatch('prorate_amount', 'metering')(amount, part, whole)) }}
{%- endmacro %}

{# Division of decimals is a double on DuckDB; on whole digits it is exact. #}
{% macro duckdb__prorate_amount(amount, part, whole) -%}
    cast(
        sign({{ amount }}) * cast(
            (2 * {{ whole_digits('abs(' ~ amount ~ ')', amount_type()) }} * ({{ part }}) + ({{ whole }})) // (2 * ({{ whole }}))
            as decimal(38, 0)
        ) * cast('0.000000000000000000001' as decimal(22, 21)) as {{ amount_type() }}
    )
{%- endmacro %}

{% macro default__prorate_amount(amount, part, whole) -%}
    cast(cast({{ amount }} as {{ amount_type() }}) * ({{ part }}) / ({{ whole }}) as {{ amount_type() }})
{%- endmacro %}
