with

event_policy as (

    select * from {{ ref('event_policy') }}

),

pivoted as (

    select
        max(case when policy_code = 'future_tolerance' then policy_value end) as future_tolerance_minutes,
        max(case when policy_code = 'grace_period' then policy_value end) as grace_period_hours
    from event_policy

)

select * from pivoted
