{% macro utc_to_local(instant, time_zone) -%}
    {{ return(adapter.dispatch('utc_to_local', 'metering')(instant, time_zone)) }}
{%- endmacro %}

{% macro duckdb__utc_to_local(instant, time_zone) -%}
    timezone({{ time_zone }}, timezone('UTC', {{ instant }}))
{%- endmacro %}

{% macro snowflake__utc_to_local(instant, time_zone) -%}
    convert_timezone('UTC', {{ time_zone }}, {{ instant }})
{%- endmacro %}
