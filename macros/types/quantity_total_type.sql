{% macro quantity_total_type() -%} decimal(38, 9) {%- endmacro %}
