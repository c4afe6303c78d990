{# Text with an exponent has at most 17 significant digits, for which comparing doubles is exact. What is no number may be looked
   at too, since an engine need not stop at the first condition that is not met. #}
{% macro has_more_decimals_than_quantity(text, quantity) -%}
    case
        when lower({{ text }}) like '%e%' then {{ dbt.safe_cast(text, 'double') }} <> cast({{ quantity }} as double)
        else length(rtrim({{ dbt.split_part(text, "'.'", 2) }}, '0')) > 9
    end
{%- endmacro %}
