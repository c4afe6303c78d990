{% macro timestamp_text(instant) -%}
    {{ return(adapter.dispatch('timestamp_text', 'metering')(instant)) }}
{%- endmacro %}

{% macro duckdb__timestamp_text(instant) -%}
    cast({{ instant }} as varchar)
{%- endmacro %}

{# A cast would follow the session's output format, by default without microseconds. #}
{% macro snowflake__timestamp_text(instant) -%}
    rtrim(rtrim(to_char({{ instant }}, 'YYYY-MM-DD HH24:MI:SS.FF6'), '0'), '.')
{%- endmacro %}
