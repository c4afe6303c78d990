select
    idempotency_key,
    corrects,
    corrected_key,
    customer_id,
    batch_id,
    event_type,
    correction,
    status,
    chain_depth,
    occurred_at,
    corrected_occurred_at,
    received_at
from {{ ref('int_event_corrections') }}
