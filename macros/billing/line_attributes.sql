{# What a line is, whatever it amounts to. #}
{% macro line_attributes() %}
    {{ return([
        'service_period_id', 'subscription_id', 'customer_id', 'plan_code', 'charge_code', 'metric_code', 'commitment_code',
        'credit_grant_code', 'paid_line_id', 'line_type', 'description', 'charge_model', 'dimensions', 'discount_codes', 'time_zone',
        'currency_code', 'price_version', 'first_event_at', 'last_event_at', 'service_period_start_at', 'service_period_end_at',
        'price_start_at', 'price_end_at', 'credit_grant_start_at', 'due_at'
    ]) }}
{% endmacro %}
