{% macro amount_type() -%} decimal(38, 21) {%- endmacro %}
