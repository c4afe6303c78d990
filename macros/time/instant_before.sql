{% macro instant_before(instant) -%}
    {{ dbt.dateadd('microsecond', -1, instant) }}
{%- endmacro %}
