{# A returned row is a version whose interval, end excluded, overlaps the next one of the same key. Null keys are equal to one another. #}
{% test validity_does_not_overlap(model, key_columns, from_column='valid_from', to_column='valid_to') %}

with

versions as (

    select
        *,
        lead({{ from_column }}) over (
            partition by {{ key_columns | join(', ') }}
            order by {{ from_column }}
        ) as next_{{ from_column }}
    from {{ model }}

)

select *
from versions
where
    next_{{ from_column }} is not null
    and ({{ to_column }} is null or {{ to_column }} > next_{{ from_column }})

{% endtest %}
