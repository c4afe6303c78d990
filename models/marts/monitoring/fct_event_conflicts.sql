{# A view: it would be read from all of history in each build, for rows that staging holds already. #}
{{ config(materialized='view') }}

with

conflicting_deliveries as (

    select * from {{ ref('stg_event_deliveries') }}
    where conflicting_fields is not null

),

counted_deliveries as (

    select * from {{ ref('stg_event_deliveries') }}

),

event_conflicts as (

    select
        conflicting.delivery_id,
        conflicting.counted_delivery_id,
        conflicting.idempotency_key,
        conflicting.source,
        conflicting.conflicting_fields,
        {%- for field in ['event_type', 'customer_id', 'occurred_at', 'corrects', 'correction', 'properties'] %}
        conflicting.{{ field }},
        counted.{{ field }} as counted_{{ field }},
        {%- endfor %}
        conflicting.received_at,
        counted.received_at as counted_received_at
    from conflicting_deliveries as conflicting
    inner join counted_deliveries as counted
        on conflicting.counted_delivery_id = counted.delivery_id

)

select * from event_conflicts
