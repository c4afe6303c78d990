{{ config(materialized='view') }}

select
    delivery_id,
    counted_delivery_id,
    idempotency_key,
    source,
    conflicting_fields,
    {%- for field in ['event_type', 'customer_id', 'occurred_at', 'properties'] %}
    {{ field }},
    counted_{{ field }},
    {%- endfor %}
    received_at,
    counted_received_at
from {{ ref('int_event_conflicts') }}
where conflicting_fields is not null
