{% macro matches_plain_number(fragment) -%}
    {{ matches_whole(fragment, '"?-?(0|[1-9][0-9]{0,18})([.][0-9]{1,9})?"?') }}
{%- endmacro %}
