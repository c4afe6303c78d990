{% macro row_address() -%}
    {{ return(adapter.dispatch('row_address', 'metering')()) }}
{%- endmacro %}

{# The row's place in the table: what is read by it is read from there and nowhere else. By a key all of history would be unpacked. #}
{% macro duckdb__row_address() -%} rowid {%- endmacro %}

{% macro default__row_address() -%} delivery_id {%- endmacro %}
