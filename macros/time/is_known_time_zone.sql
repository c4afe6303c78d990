{% macro is_known_time_zone(time_zone) -%}
    {{ return(adapter.dispatch('is_known_time_zone', 'metering')(time_zone)) }}
{%- endmacro %}

{% macro duckdb__is_known_time_zone(time_zone) -%}
    ({{ time_zone }} in (select name from pg_timezone_names()))
{%- endmacro %}

{# Snowflake lists no zones, but fails on a name it does not know: the conversion itself is the check. #}
{% macro snowflake__is_known_time_zone(time_zone) -%}
    (convert_timezone({{ time_zone }}, 'UTC', cast('2020-01-01' as timestamp_ntz)) is not null)
{%- endmacro %}
