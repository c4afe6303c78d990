{# Which version of each key is in force when. The relation has the key columns, version_id, is_own, valid_from_at (for ties) and
   the interval from_at to to_at of each candidate; a result row is the longest interval with one version. A candidate of a
   customer's own goes before a common one, then the one that began later. #}
{% macro versions_in_force(relation, keys) -%}
    {%- set key_list = keys | join(', ') -%}
    candidates_counted as (

        select
            *,
            count(*) over (partition by {{ key_list }}) as candidate_count
        from {{ relation }}

    ),

    rivals as (

        select * from candidates_counted
        where candidate_count > 1

    ),

    rival_boundaries as (

        select {{ key_list }}, from_at as boundary_at from rivals

        union

        select {{ key_list }}, to_at as boundary_at from rivals

    ),

    elementary_intervals as (

        select
            {{ key_list }},
            boundary_at as from_at,
            lead(boundary_at) over (partition by {{ key_list }} order by boundary_at) as to_at
        from rival_boundaries

    ),

    elementary_intervals_ranked as (

        select
            {% for key in keys %}rivals.{{ key }}, {% endfor %}
            rivals.version_id,
            elementary_intervals.from_at,
            elementary_intervals.to_at,
            row_number() over (
                partition by {% for key in keys %}rivals.{{ key }}, {% endfor %}elementary_intervals.from_at
                order by rivals.is_own desc, rivals.valid_from_at desc, rivals.version_id
            ) as precedence
        from elementary_intervals
        inner join rivals
            on
                {% for key in keys %}elementary_intervals.{{ key }} = rivals.{{ key }}
                and {% endfor %}elementary_intervals.from_at >= rivals.from_at
                and elementary_intervals.to_at <= rivals.to_at

    ),

    elementary_intervals_in_force as (

        select
            *,
            case
                when
                    lag(version_id) over (partition by {{ key_list }} order by from_at) = version_id
                    and lag(to_at) over (partition by {{ key_list }} order by from_at) = from_at
                    then 0
                else 1
            end as starts_interval
        from elementary_intervals_ranked
        where precedence = 1

    ),

    elementary_intervals_numbered as (

        select
            *,
            sum(starts_interval) over (
                partition by {{ key_list }}
                order by from_at
                rows between unbounded preceding and current row
            ) as interval_number
        from elementary_intervals_in_force

    ),

    versions_in_force as (

        select {{ key_list }}, version_id, from_at, to_at from candidates_counted
        where candidate_count = 1

        union all

        select {{ key_list }}, version_id, min(from_at) as from_at, max(to_at) as to_at
        from elementary_intervals_numbered
        group by {{ key_list }}, version_id, interval_number

    )
{%- endmacro %}
