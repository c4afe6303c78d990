with

chains as (

    select * from {{ ref('int_correction_chains') }}

),

late_events as (

    select * from {{ ref('int_late_events') }}

),

corrections_judged as (

    select
        chains.*,
        case
            when chains.corrected_key is null then 'waiting_for_event'
            when chains.customer_id <> chains.corrected_customer_id then 'customer_differs'
            when chains.event_type <> chains.corrected_event_type then 'event_type_differs'
            when late_events.status in ('waiting', 'rejected') then 'late_' || late_events.status
        end as obstacle
    from chains
    left join late_events
        on chains.idempotency_key = late_events.idempotency_key

),

{# An event and all corrections that lead to it are one: the correction that arrived last decides. #}
corrections_ranked as (

    select
        *,
        row_number() over (
            partition by corrected_key, obstacle
            order by received_at desc, batch_id desc, line_number desc
        ) as recency
    from corrections_judged

),

event_corrections as (

    select
        ---------- ids
        idempotency_key,
        corrects,
        corrected_key,
        customer_id,
        batch_id,

        ---------- strings
        event_type,
        correction,
        case
            when obstacle is not null then obstacle
            when recency = 1 then 'applied'
            else 'superseded'
        end as status,

        ---------- numerics
        line_number,
        chain_depth,

        ---------- timestamps
        occurred_at,
        corrected_occurred_at,
        received_at
    from corrections_ranked

)

select * from event_corrections
