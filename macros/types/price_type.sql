{% macro price_type() -%} decimal(22, 12) {%- endmacro %}
