{# The pattern keeps out what engines read beyond ISO 8601: epoch numbers, 'infinity', dates alone, zone names. #}
{% macro parse_timestamp(text) -%}
    case
        when {{ matches_timestamp(text) }}
            then {{ adapter.dispatch('cast_timestamp_text', 'metering')(text) }}
    end
{%- endmacro %}

{% macro duckdb__cast_timestamp_text(text) -%}
    timezone('UTC', try_cast(upper({{ text }}) as timestamptz))
{%- endmacro %}

{% macro snowflake__cast_timestamp_text(text) -%}
    cast(convert_timezone('UTC', try_to_timestamp_tz(upper({{ text }}))) as timestamp_ntz)
{%- endmacro %}
