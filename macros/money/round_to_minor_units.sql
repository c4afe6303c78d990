{% macro round_to_minor_units(amount, minor_units) -%}
    cast(
        case {{ minor_units }}
            {%- for digits in range(5) %}
            when {{ digits }} then cast(round({{ amount }}, {{ digits }}) as {{ money_type() }})
            {%- endfor %}
        end as {{ money_type() }}
    )
{%- endmacro %}
