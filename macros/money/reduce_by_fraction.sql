{% macro reduce_by_fraction(amount, fraction) -%}
    {{ return(adapter.dispatch('reduce_by_fraction', 'metering')(amount, fraction)) }}
{%- endmacro %}

{# A product of decimals would need more digits than there are for amounts from 100 billion on. Whole digits do not: a million parts,
   of which so many are kept. #}
{% macro duckdb__reduce_by_fraction(amount, fraction) -%}
    {%- set digits = whole_digits('abs(' ~ amount ~ ')', amount_type()) -%}
    {%- set kept -%} cast((1 - {{ fraction }}) * 1000000 as hugeint) {%- endset -%}
    cast(
        sign({{ amount }}) * cast(
            {{ digits }} // 1000000 * {{ kept }} + ({{ digits }} % 1000000 * {{ kept }} * 2 + 1000000) // 2000000
            as decimal(38, 0)
        ) * cast('0.000000000000000000001' as decimal(22, 21)) as {{ amount_type() }}
    )
{%- endmacro %}

{% macro default__reduce_by_fraction(amount, fraction) -%}
    cast(cast({{ amount }} as {{ amount_type() }}) * cast(1 - {{ fraction }} as decimal(7, 6)) as {{ amount_type() }})
{%- endmacro %}
