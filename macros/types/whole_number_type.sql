{% macro whole_number_type() -%}
    {{ return(adapter.dispatch('whole_number_type', 'metering')()) }}
{%- endmacro %}

{% macro duckdb__whole_number_type() -%} hugeint {%- endmacro %}

{% macro default__whole_number_type() -%} decimal(38, 0) {%- endmacro %}
