{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key='delivery_id'
) }}

with

deliveries {{ as_inlined() }} (

    select * from {{ ref('stg_event_deliveries') }}

),

{% if is_incremental() %}

known_conflicts as (

    select * from {{ this }}

),

{# A known conflict that is none any more stays as a row without fields: rows cannot be deleted here. #}
conflicting_deliveries as (

    select deliveries.*
    from deliveries
    left join known_conflicts
        on deliveries.delivery_id = known_conflicts.delivery_id
    where
        deliveries.stage_sequence > (select coalesce(max(known_conflicts.stage_sequence), 0) from known_conflicts)
        and (deliveries.conflicting_fields is not null or known_conflicts.delivery_id is not null)

),

{% else %}

conflicting_deliveries as (

    select * from deliveries
    where conflicting_fields is not null

),

{% endif %}

keys_in_conflict as (

    select distinct counted_delivery_id from conflicting_deliveries

),

few_keys_in_conflict as (

    {{ few_rows('keys_in_conflict', ['counted_delivery_id']) }}

),

counted_deliveries as (

    select deliveries.*
    from deliveries
    inner join few_keys_in_conflict
        on deliveries.delivery_id = few_keys_in_conflict.counted_delivery_id

),

event_conflicts as (

    select
        conflicting.delivery_id,
        conflicting.counted_delivery_id,
        conflicting.idempotency_key,
        conflicting.source,
        conflicting.conflicting_fields,
        {%- for field in ['event_type', 'customer_id', 'occurred_at', 'properties'] %}
        conflicting.{{ field }},
        counted.{{ field }} as counted_{{ field }},
        {%- endfor %}
        conflicting.received_at,
        counted.received_at as counted_received_at,
        conflicting.stage_sequence
    from conflicting_deliveries as conflicting
    left join counted_deliveries as counted
        on conflicting.counted_delivery_id = counted.delivery_id

)

select * from event_conflicts
