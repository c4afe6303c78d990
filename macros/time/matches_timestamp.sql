{# ISO 8601 with the extended date and time of day; offsets reach from -18:59 to +18:59. #}
{% macro matches_timestamp(text) -%}
    {{ matches_whole(
        text,
        '[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]([01][0-9]|2[0-3]):[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?(Z|[+-](0[0-9]|1[0-8])(:?[0-5][0-9])?)?'
    ) }}
{%- endmacro %}
