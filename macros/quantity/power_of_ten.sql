{% macro power_of_ten(exponent) -%}
    case {{ exponent }}
        {%- for digits in range(-9, 10) %}
        when {{ digits }} then {{ 10 ** digits if digits >= 0 else '0.' ~ '0' * (-digits - 1) ~ '1' }}
        {%- endfor %}
    end
{%- endmacro %}
