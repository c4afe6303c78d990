{% macro utc_to_local(utc_at, time_zone) -%}
    {{ return(adapter.dispatch('utc_to_local', 'metering')(utc_at, time_zone)) }}
{%- endmacro %}

{% macro duckdb__utc_to_local(utc_at, time_zone) -%}
    timezone({{ time_zone }}, timezone('UTC', {{ utc_at }}))
{%- endmacro %}

{% macro snowflake__utc_to_local(utc_at, time_zone) -%}
    convert_timezone('UTC', {{ time_zone }}, {{ utc_at }})
{%- endmacro %}
