{# Where clocks are set back at midnight, the instant before is of the day that begins; where they are set forward, the wall clock
   before is. The earlier of the two is of the day that ends. #}
{% macro local_clock_before(instant, time_zone) -%}
    least(
        {{ utc_to_local(instant_before(instant), time_zone) }},
        {{ instant_before(utc_to_local(instant, time_zone)) }}
    )
{%- endmacro %}
