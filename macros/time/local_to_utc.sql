{% macro local_to_utc(local_at, time_zone) -%}
    {{ return(adapter.dispatch('local_to_utc', 'metering')(local_at, time_zone)) }}
{%- endmacro %}

{% macro duckdb__local_to_utc(local_at, time_zone) -%}
    timezone('UTC', timezone({{ time_zone }}, {{ local_at }}))
{%- endmacro %}

{% macro snowflake__local_to_utc(local_at, time_zone) -%}
    convert_timezone({{ time_zone }}, 'UTC', {{ local_at }})
{%- endmacro %}
