{# A quantity below zero (a falling weighted_sum) has no billable units. #}
{% macro billable_units(quantity, unit_size, rounding, rounding_step) -%}
    {%- set units -%}
        case
            when {{ unit_size }} = 1 then cast(greatest({{ quantity }}, 0) as {{ quantity_total_type() }})
            else {{ divide_quantity('greatest(' ~ quantity ~ ', 0)', unit_size) }}
        end
    {%- endset -%}
    cast(
        case {{ rounding }}
            when 'ceil' then {{ divide_ceiling(units, rounding_step) }} * {{ rounding_step }}
            when 'floor' then {{ divide_floor(units, rounding_step) }} * {{ rounding_step }}
            when 'half_up' then {{ divide_floor('(' ~ units ~ ' * 2 + ' ~ rounding_step ~ ')', rounding_step ~ ' * 2') }} * {{ rounding_step }}
            else {{ units }}
        end as {{ quantity_total_type() }}
    )
{%- endmacro %}
