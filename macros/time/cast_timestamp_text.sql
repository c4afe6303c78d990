{% macro cast_timestamp_text(text) -%}
    {{ return(adapter.dispatch('cast_timestamp_text', 'metering')(text)) }}
{%- endmacro %}

{# A cast to timestamp would leave the offset out of account. #}
{% macro duckdb__cast_timestamp_text(text) -%}
    timezone('UTC', try_cast({{ text }} as timestamptz))
{%- endmacro %}

{% macro snowflake__cast_timestamp_text(text) -%}
    cast(convert_timezone('UTC', try_to_timestamp_tz({{ text }})) as timestamp_ntz)
{%- endmacro %}
