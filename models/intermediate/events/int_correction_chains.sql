{# From the events downwards: what a cycle of corrections names is never reached, so the recursion ends. #}
with recursive

events {{ as_inlined() }} (

    select * from {{ ref('stg_usage_events') }}

),

corrections {{ as_materialized() }} (

    select * from events
    where corrects is not null

),

corrected_keys as (

    select distinct corrects as idempotency_key from corrections

),

few_corrected_keys as (

    {{ few_rows('corrected_keys', ['idempotency_key']) }}

),

corrected_events as (

    select
        events.idempotency_key,
        events.customer_id,
        events.event_type,
        events.occurred_at
    from events
    inner join few_corrected_keys
        on events.idempotency_key = few_corrected_keys.idempotency_key
    where events.corrects is null

),

links as (

    select
        corrections.idempotency_key,
        corrected_events.idempotency_key as corrected_key,
        1 as chain_depth
    from corrections
    inner join corrected_events
        on corrections.corrects = corrected_events.idempotency_key

    union all

    select
        corrections.idempotency_key,
        links.corrected_key,
        links.chain_depth + 1 as chain_depth
    from links
    inner join corrections
        on links.idempotency_key = corrections.corrects

),

correction_chains as (

    select
        ---------- ids
        corrections.idempotency_key,
        corrections.corrects,
        corrected_events.idempotency_key as corrected_key,
        corrections.customer_id,
        corrected_events.customer_id as corrected_customer_id,
        corrections.batch_id,

        ---------- strings
        corrections.event_type,
        corrected_events.event_type as corrected_event_type,
        corrections.correction,

        ---------- numerics
        corrections.line_number,
        corrections.schema_version,
        links.chain_depth,

        ---------- timestamps
        corrections.occurred_at,
        corrected_events.occurred_at as corrected_occurred_at,
        corrections.received_at
    from corrections
    left join links
        on corrections.idempotency_key = links.idempotency_key
    left join corrected_events
        on links.corrected_key = corrected_events.idempotency_key

)

select * from correction_chains
