{# LEAST skips nulls on DuckDB and not on Snowflake, so a null part is taken out before. #}
{% macro ratio(part, whole) -%}
    cast(
        case
            when {{ whole }} <> 0 and {{ part }} is not null
                then least(cast({{ part }} as double) / cast({{ whole }} as double), 999999999)
        end as decimal(18, 9)
    )
{%- endmacro %}
