{% macro multiply_amount(quantity, unit_amount) -%}
    {{ return(adapter.dispatch('multiply_amount', 'metering')(quantity, unit_amount)) }}
{%- endmacro %}

{% macro default__multiply_amount(quantity, unit_amount) -%}
    cast({{ quantity }} * {{ unit_amount }} as {{ amount_type() }})
{%- endmacro %}

{# Snowflake gives a product the larger scale of its factors (at least 12), so one factor must already carry the full scale. #}
{% macro snowflake__multiply_amount(quantity, unit_amount) -%}
    cast({{ quantity }} * cast({{ unit_amount }} as {{ amount_type() }}) as {{ amount_type() }})
{%- endmacro %}
