{% macro ratio(part, whole) -%}
    cast(
        case when {{ whole }} <> 0 then cast({{ part }} as double) / cast({{ whole }} as double) end
        as decimal(18, 9)
    )
{%- endmacro %}
