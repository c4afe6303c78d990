{# Text with an exponent has at most 17 significant digits, for which comparing doubles is exact. #}
{% macro has_more_decimals_than_quantity(text, quantity) -%}
    case
        when lower({{ text }}) like '%e%' then cast({{ text }} as double) <> cast({{ quantity }} as double)
        else length(rtrim({{ dbt.split_part(text, "'.'", 2) }}, '0')) > 9
    end
{%- endmacro %}
