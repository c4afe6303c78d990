with

subscriptions as (

    select * from {{ ref('subscriptions') }}

),

subscription_phases as (

    select
        ---------- ids
        subscription_id,
        customer_id,
        plan_code,

        ---------- strings
        time_zone,

        ---------- timestamps
        anchor_date,
        started_at as started_local_at,
        ended_at as ended_local_at,
        {{ local_to_utc('started_at', 'time_zone') }} as started_at,
        {{ local_to_utc('ended_at', 'time_zone') }} as ended_at
    from subscriptions

)

select * from subscription_phases
