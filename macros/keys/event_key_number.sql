{% macro event_key_number(idempotency_key) -%}
    {{ return(adapter.dispatch('event_key_number', 'metering')(idempotency_key)) }}
{%- endmacro %}

{# DuckDB's md5_number reads the bytes in the other order, and takes longer than this. #}
{% macro duckdb__event_key_number(idempotency_key) -%}
    cast('0x' || left(md5({{ idempotency_key }}), 15) as bigint)
{%- endmacro %}

{% macro default__event_key_number(idempotency_key) -%}
    to_number(upper(left(md5({{ idempotency_key }}), 15)), 'XXXXXXXXXXXXXXX')
{%- endmacro %}
