{% macro price_in_minor_units(price, minor_units) -%}
    cast(
        case {{ minor_units }}
            {%- for digits in range(5) %}
            when {{ digits }} then {{ price }} * {{ 10 ** digits }}
            {%- endfor %}
        end as decimal(26, 12)
    )
{%- endmacro %}
