{# An event type with more properties to add up is read several times. #}
{% macro value_slots() -%} {{ return(range(3)) }} {%- endmacro %}
