{# An event type with more properties to tell its events apart by is metered event by event. #}
{% macro key_slots() -%} {{ return(range(6)) }} {%- endmacro %}
