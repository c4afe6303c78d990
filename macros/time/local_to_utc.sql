{# From UTC to a zone every instant has one wall clock; the way back is not documented on every engine where clocks are set. So it
   takes the offset of a day later and, where that does not lead back to the wall clock, of a day earlier: of two instants the
   later, and a skipped wall clock counts on from before the gap. #}
{% macro local_to_utc(local_at, time_zone) -%}
    {%- set later = less_offset_at(local_at, time_zone, dbt.dateadd('day', 1, local_at)) -%}
    case
        when {{ utc_to_local(later, time_zone) }} = {{ local_at }} then {{ later }}
        else {{ less_offset_at(local_at, time_zone, dbt.dateadd('day', -1, local_at)) }}
    end
{%- endmacro %}
