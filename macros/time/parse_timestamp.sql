{# The pattern keeps out what engines read beyond ISO 8601: epoch numbers, 'infinity', dates alone, zone names. #}
{% macro parse_timestamp(text) -%}
    case
        when
            ({{ text }} like '____-__-__T__:__%' or {{ text }} like '____-__-__ __:__%')
            and {{ text }} not like '%/%'
            then {{ adapter.dispatch('cast_timestamp_text', 'metering')(text) }}
    end
{%- endmacro %}

{% macro duckdb__cast_timestamp_text(text) -%}
    timezone('UTC', try_cast({{ text }} as timestamptz))
{%- endmacro %}

{% macro snowflake__cast_timestamp_text(text) -%}
    cast(convert_timezone('UTC', try_to_timestamp_tz({{ text }})) as timestamp_ntz)
{%- endmacro %}
