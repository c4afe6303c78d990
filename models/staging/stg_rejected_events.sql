select
    ---------- ids
    delivery_id,
    batch_id,
    line_number,
    source,
    idempotency_key,
    customer_id,

    ---------- strings
    event_type,
    reason_codes,
    reason_messages,

    ---------- timestamps
    occurred_at,
    received_at
from {{ ref('stg_event_deliveries') }}
where delivery_status = 'rejected'
