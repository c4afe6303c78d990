{% macro less_offset_at(local_at, time_zone, instant) -%}
    {{ dbt.dateadd('second', dbt.datediff(utc_to_local(instant, time_zone), instant, 'second'), local_at) }}
{%- endmacro %}
