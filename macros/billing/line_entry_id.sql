{% macro line_entry_id(rated_line_id, currency_code, entry_number) -%}
    {{ surrogate_key([rated_line_id, currency_code, entry_number]) }}
{%- endmacro %}
