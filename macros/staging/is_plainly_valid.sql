{% macro is_plainly_valid(slot) -%}
    {%- set fragment = 'fragment_' ~ slot -%}
    {%- set data_type = 'data_type_' ~ slot -%}
    {%- set minimum = 'minimum_' ~ slot -%}
    {%- set maximum = 'maximum_' ~ slot -%}
    {%- set allowed_values = 'allowed_values_' ~ slot -%}
    {%- set allowed_fragments = 'allowed_fragments_' ~ slot -%}
    {%- set number = dbt.safe_cast("replace(" ~ fragment ~ ", '\"', '')", quantity_type()) -%}
    coalesce(
        case
            when property_path_{{ slot }} is null then true
            when coalesce({{ fragment }}, 'null') = 'null' then not is_required_{{ slot }}
            when {{ data_type }} = 'string'
                then left({{ fragment }}, 1) = '"'
                and ({{ allowed_values }} is null or contains({{ allowed_fragments }}, {{ fragment }}))
            when {{ data_type }} = 'boolean'
                then {{ fragment }} in ('true', 'false') and {{ allowed_values }} is null
            else
                {{ matches_plain_number(fragment) }}
                and ({{ data_type }} = 'decimal' or {{ fragment }} not like '%.%')
                and {{ allowed_values }} is null
                and coalesce({{ number }} >= {{ minimum }}, {{ minimum }} is null)
                and coalesce({{ number }} <= {{ maximum }}, {{ maximum }} is null)
        end,
        false
    )
{%- endmacro %}
