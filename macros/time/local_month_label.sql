{% macro local_month_label(local_at) -%}
    left({{ timestamp_text('cast(' ~ local_at ~ ' as datetime)') }}, 7)
{%- endmacro %}
