{% macro local_month_label(local_at) -%}
    left(cast(cast({{ local_at }} as date) as varchar), 7)
{%- endmacro %}
