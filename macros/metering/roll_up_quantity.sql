{% macro roll_up_quantity(condition='true', prefix='') -%}
    cast(
        case max({{ prefix }}aggregation)
            when 'max' then max(case when {{ condition }} then {{ prefix }}quantity end)
            when 'unique_count' then count(distinct case when {{ condition }} then {{ prefix }}distinct_value end)
            else sum(case when {{ condition }} then {{ prefix }}quantity end)
        end as {{ quantity_total_type() }}
    )
{%- endmacro %}
