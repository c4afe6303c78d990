{# The one place where usage of shorter windows becomes usage of longer ones, exactly, for every aggregation.
   unique_count needs its values apart and latest and percentile rank rows; the others are plain aggregates, kept apart so that
   they pay for neither. Grouping by value and counting the groups takes less than count(distinct) beside other aggregates. #}
{% macro roll_up_usage(relation, keys) -%}
    select
        {{ keys | join(',\n        ') }},
        cast(
            case max(aggregation)
                when 'max' then max(quantity)
                when 'min' then min(quantity)
                when 'average' then {{ divide_quantity('sum(quantity)', 'sum(event_count)') }}
                else sum(quantity)
            end as {{ quantity_total_type() }}
        ) as quantity,
        cast(sum(event_count) as bigint) as event_count,
        cast(sum(event_keys_hash) as {{ event_keys_hash_type() }}) as event_keys_hash,
        min(first_event_at) as first_event_at,
        max(last_event_at) as last_event_at
    from {{ relation }}
    where aggregation not in ('unique_count', 'latest', 'percentile')
    group by
        {{ keys | join(',\n        ') }}

    union all

    select
        {{ keys | join(',\n        ') }},
        cast(count(distinct_value) as {{ quantity_total_type() }}) as quantity,
        cast(sum(event_count) as bigint) as event_count,
        cast(sum(event_keys_hash) as {{ event_keys_hash_type() }}) as event_keys_hash,
        min(first_event_at) as first_event_at,
        max(last_event_at) as last_event_at
    from (
        select
            {{ keys | join(',\n            ') }},
            distinct_value,
            sum(event_count) as event_count,
            sum(event_keys_hash) as event_keys_hash,
            min(first_event_at) as first_event_at,
            max(last_event_at) as last_event_at
        from {{ relation }}
        where aggregation = 'unique_count'
        group by
            {{ keys | join(',\n            ') }},
            distinct_value
    ) as distinct_values
    group by
        {{ keys | join(',\n        ') }}

    union all

    select
        {{ keys | join(',\n        ') }},
        cast(
            case max(aggregation)
                when 'latest' then max(case when last_event_at = latest_event_at then quantity end)
                else min(case when events_up_to_quantity >= percentile * events_in_all then quantity end)
            end as {{ quantity_total_type() }}
        ) as quantity,
        cast(sum(event_count) as bigint) as event_count,
        cast(sum(event_keys_hash) as {{ event_keys_hash_type() }}) as event_keys_hash,
        min(first_event_at) as first_event_at,
        max(last_event_at) as last_event_at
    from (
        select
            *,
            max(last_event_at) over (partition by {{ keys | join(', ') }}) as latest_event_at,
            sum(event_count) over (
                partition by {{ keys | join(', ') }}
                order by quantity
                rows between unbounded preceding and current row
            ) as events_up_to_quantity,
            sum(event_count) over (partition by {{ keys | join(', ') }}) as events_in_all
        from {{ relation }}
        where aggregation in ('latest', 'percentile')
    ) as ranked
    group by
        {{ keys | join(',\n        ') }}
{%- endmacro %}
