{% macro matches_number(text) -%}
    {{ return(adapter.dispatch('matches_number', 'metering')(text)) }}
{%- endmacro %}

{% macro duckdb__matches_number(text) -%}
    regexp_full_match({{ text }}, '-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]+)?')
{%- endmacro %}

{% macro snowflake__matches_number(text) -%}
    regexp_like({{ text }}, '-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]+)?')
{%- endmacro %}
