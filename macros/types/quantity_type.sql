{% macro quantity_type() -%} decimal(28, 9) {%- endmacro %}
