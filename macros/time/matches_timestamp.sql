{# ISO 8601 with the extended date and time of day; offsets reach from -18:59 to +18:59. #}
{% macro matches_timestamp(text) -%}
    {% set pattern -%}
    [0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?([Zz]|[+-](0[0-9]|1[0-8])(:?[0-5][0-9])?)?
    {%- endset %}
    {{ return(adapter.dispatch('matches_timestamp', 'metering')(text, pattern)) }}
{%- endmacro %}

{% macro duckdb__matches_timestamp(text, pattern) -%}
    regexp_full_match({{ text }}, '{{ pattern }}')
{%- endmacro %}

{% macro snowflake__matches_timestamp(text, pattern) -%}
    regexp_like({{ text }}, '{{ pattern }}')
{%- endmacro %}
