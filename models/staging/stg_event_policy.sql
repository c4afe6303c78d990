with

event_policy as (

    select * from {{ ref('event_policy') }}

),

pivoted as (

    select
        {%- for policy_code, column in [
            ('future_tolerance', 'future_tolerance_minutes'), ('grace_period', 'grace_period_hours')
        ] %}
        {{ dbt.safe_cast("max(case when policy_code = '" ~ policy_code ~ "' then policy_value end)", 'integer') }}
            as {{ column }},
        {%- endfor %}
        max(case when policy_code = 'late_events' then policy_value end) as late_event_policy
    from event_policy

)

select * from pivoted
