{% macro months_in_interval(billing_interval) -%}
    case {{ billing_interval }} when 'month' then 1 when 'quarter' then 3 when 'year' then 12 end
{%- endmacro %}
