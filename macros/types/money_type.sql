{% macro money_type() -%} decimal(28, 4) {%- endmacro %}
