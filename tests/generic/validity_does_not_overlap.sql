{# A returned row is a version whose [valid_from, valid_to) overlaps the next version of the same key. #}
{% test validity_does_not_overlap(model, key_columns) %}

with

versions as (

    select
        *,
        lead(valid_from) over (
            partition by {{ key_columns | join(', ') }}
            order by valid_from
        ) as next_valid_from
    from {{ model }}

)

select *
from versions
where
    next_valid_from is not null
    and (valid_to is null or valid_to > next_valid_from)

{% endtest %}
