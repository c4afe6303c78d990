with

chains as (

    select * from {{ ref('int_correction_chains') }}

),

corrections_judged as (

    select
        *,
        case
            when corrected_key is null then 'waiting_for_event'
            when customer_id <> corrected_customer_id then 'customer_differs'
            when event_type <> corrected_event_type then 'event_type_differs'
        end as obstacle
    from chains

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
