{% macro in_minor_units(money, minor_units) -%}
    cast(
        case {{ minor_units }}
            {%- for digits in range(5) %}
            when {{ digits }} then {{ money }} * {{ 10 ** digits }}
            {%- endfor %}
        end as bigint
    )
{%- endmacro %}
