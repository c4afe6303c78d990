{% macro ratio(part, whole) -%}
    cast(
        case when {{ whole }} <> 0 then least(cast({{ part }} as double) / cast({{ whole }} as double), 999999999) end
        as decimal(18, 9)
    )
{%- endmacro %}
