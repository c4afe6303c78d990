{# Stripe adds up by whole minutes, so an event in a minute of its own can be looked for. A day of minutes, the last ones,
   keeps two lines of a customer and meter apart, and the event as long as can be in the 35 days that Stripe takes. A line and its
   adjustments have one minute: Stripe does not say whether it shows a minute's sum that is below zero. #}
{% macro stripe_event_minute(rated_line_id, service_period_start_at, service_period_end_at) -%}
    {%- set period_minutes = dbt.datediff(service_period_start_at, service_period_end_at, 'minute') -%}
    {%- set minutes_before_last -%}
        -mod({{ event_key_number(rated_line_id) }}, greatest(least(1440, {{ period_minutes }} - 1), 1))
    {%- endset -%}
    {{ dbt.dateadd('minute', minutes_before_last, dbt.date_trunc('minute', instant_before(service_period_end_at))) }}
{%- endmacro %}
