{{ config(
    meta={
        'rule': 'invariant 1: deliveries in raw = accepted + duplicates + rejected, for every batch',
        'dagster': {'ref': {'name': 'stg_event_deliveries'}}
    }
) }}
-- A returned row is a batch in which deliveries got lost or were invented between the raw table and staging.

with

raw_counts as (

    select
        batch_id,
        count(*) as deliveries
    from {{ source('raw', 'usage_events') }}
    where received_at <= {{ as_of() }}
    group by batch_id

),

staged_counts as (

    select
        batch_id,
        count(case when delivery_status = 'accepted' then 1 end) as accepted,
        count(case when delivery_status = 'duplicate' then 1 end) as duplicates,
        count(case when delivery_status = 'rejected' then 1 end) as rejected
    from {{ ref('stg_event_deliveries') }}
    group by batch_id

)

select
    coalesce(raw_counts.batch_id, staged_counts.batch_id) as batch_id,
    raw_counts.deliveries,
    staged_counts.accepted,
    staged_counts.duplicates,
    staged_counts.rejected
from raw_counts
full outer join staged_counts
    on raw_counts.batch_id = staged_counts.batch_id
where
    coalesce(raw_counts.deliveries, 0)
    <> coalesce(staged_counts.accepted + staged_counts.duplicates + staged_counts.rejected, 0)
