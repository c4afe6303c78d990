{# A view: it would be read from all of history in each build, for rows that staging holds already. #}
{{ config(materialized='view') }}

select
    delivery_id,
    batch_id,
    line_number,
    source,
    idempotency_key,
    event_type,
    customer_id,
    reason_codes,
    reason_messages,
    occurred_at,
    received_at
from {{ ref('stg_rejected_events') }}
