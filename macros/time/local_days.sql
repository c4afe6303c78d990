{# Differences of local dates: adjoining intervals share out the days of their union, and a day of 23 or 25 hours is one day. #}
{% macro local_days(start_at, end_at, time_zone) -%}
    {{ dbt.datediff(utc_to_local(start_at, time_zone), utc_to_local(end_at, time_zone), 'day') }}
{%- endmacro %}
