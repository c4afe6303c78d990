{% macro from_minor_units(minor, minor_units) -%}
    cast(
        case {{ minor_units }}
            {%- for digits in range(5) %}
            when {{ digits }} then cast({{ minor }} as {{ money_type() }}) * cast({{ '0.0001' if digits == 4 else '%0.*f' | format(digits, 10 ** -digits) }} as decimal(5, 4))
            {%- endfor %}
        end as {{ money_type() }}
    )
{%- endmacro %}
