{% macro filter_is_met(value_text, operator, filter_value) -%}
    {%- set value_number = dbt.safe_cast(value_text, quantity_total_type()) -%}
    {%- set filter_number = dbt.safe_cast(filter_value, quantity_total_type()) -%}
    case
        when {{ operator }} in ('equals', 'in', 'not_in') then {{ value_text }} = {{ filter_value }}
        when {{ operator }} = 'greater_than' then {{ value_number }} > {{ filter_number }}
        when {{ operator }} = 'at_least' then {{ value_number }} >= {{ filter_number }}
        when {{ operator }} = 'less_than' then {{ value_number }} < {{ filter_number }}
        when {{ operator }} = 'at_most' then {{ value_number }} <= {{ filter_number }}
        when {{ operator }} = 'is_present' then {{ value_text }} is not null
        when {{ operator }} = 'is_absent' then {{ value_text }} is null
    end
{%- endmacro %}
