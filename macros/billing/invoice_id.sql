{% macro invoice_id(customer_id, billing_period, currency_code) -%}
    {{ customer_id }} || '/' || {{ billing_period }} || '/' || {{ currency_code }}
{%- endmacro %}
