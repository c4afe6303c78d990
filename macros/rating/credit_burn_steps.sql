{# How many credit grants of a customer may compete for the same amounts. #}
{% macro credit_burn_steps() -%} {{ return(40) }} {%- endmacro %}
