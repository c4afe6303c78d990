select
    ---------- ids
    delivery_id,
    batch_id,
    idempotency_key,
    customer_id,
    corrects,

    ---------- strings
    event_type,
    correction,
    properties,

    ---------- numerics
    line_number,
    schema_version,
    stage_sequence,

    ---------- timestamps
    occurred_at,
    occurred_hour_at,
    received_at
from {{ ref('stg_event_deliveries') }}
where delivery_status = 'accepted'
