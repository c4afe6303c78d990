select
    ---------- ids
    delivery_id,
    idempotency_key,
    customer_id,

    ---------- strings
    event_type,
    properties,

    ---------- numerics
    schema_version,
    stage_sequence,

    ---------- timestamps
    occurred_at,
    occurred_hour_at,
    received_at
from {{ ref('stg_event_deliveries') }}
where delivery_status = 'accepted'
