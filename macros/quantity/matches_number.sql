{% macro matches_number(text) -%}
    {{ matches_whole(text, '-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]+)?') }}
{%- endmacro %}
