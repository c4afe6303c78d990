{{ config(
    meta={
        'rule': 'invariant 2: a key with a valid delivery counts exactly once, by the delivery received first',
        'dagster': {'ref': {'name': 'stg_event_deliveries'}}
    }
) }}
-- A returned row is a key that counts never or more than once, or by another delivery than the first.

with

valid_deliveries as (

    select
        idempotency_key,
        delivery_status,
        row_number() over (
            partition by idempotency_key
            order by received_at, batch_id, line_number
        ) as arrival
    from {{ ref('stg_event_deliveries') }}
    where delivery_status <> 'rejected'

)

select
    idempotency_key,
    count(case when delivery_status = 'accepted' then 1 end) as counted,
    min(case when delivery_status = 'accepted' then arrival end) as counted_arrival
from valid_deliveries
group by idempotency_key
having
    count(case when delivery_status = 'accepted' then 1 end) <> 1
    or min(case when delivery_status = 'accepted' then arrival end) <> 1
