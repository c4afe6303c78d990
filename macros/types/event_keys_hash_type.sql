{% macro event_keys_hash_type() -%} decimal(38, 0) {%- endmacro %}
