{# A view, so that a sync shows at once. #}
{{ config(materialized='view') }}

with

sync_log as (

    select * from {{ source('ops', 'stripe_sync_log') }}

),

{# A meter event without a status turned out not to be in Stripe, although it may have been confirmed. #}
undone_tries as (

    select distinct
        stripe_account,
        entity_key,
        idempotency_key
    from sync_log
    where
        entity = 'meter_event'
        and step = 'failed'
        and http_status is null

),

outcomes as (

    select
        sync_log.*,
        undone_tries.idempotency_key is not null as is_undone
    from sync_log
    left join undone_tries
        on
            sync_log.stripe_account = undone_tries.stripe_account
            and sync_log.entity_key = undone_tries.entity_key
            and sync_log.idempotency_key = undone_tries.idempotency_key
            and sync_log.entity = 'meter_event'

),

by_object as (

    select
        stripe_account,
        entity,
        entity_key,
        max(customer_id) as customer_id,
        max(billing_period) as billing_period,
        sum(case when step = 'intent' then 1 else 0 end) as tries,
        sum(case when step = 'confirmed' and not is_undone then 1 else 0 end) as confirmations,
        sum(
            case when (is_undone and step = 'intent') or (not is_undone and step = 'failed') then 1 else 0 end
        ) as refusals,
        max_by(idempotency_key, case when step = 'intent' then logged_at end) as idempotency_key,
        min(logged_at) as first_tried_at,
        max(logged_at) as last_tried_at
    from outcomes
    group by stripe_account, entity, entity_key

),

{# Whole, with what it lacks: max_by leaves rows without a value out on one engine and not on the other. #}
refusals_ranked as (

    select
        stripe_account,
        entity,
        entity_key,
        request_id,
        error_code,
        error_body,
        http_status,
        row_number() over (
            partition by stripe_account, entity, entity_key
            order by logged_at desc, attempt_id desc
        ) as recency
    from outcomes
    where step = 'failed'

),

last_refusals as (

    select * from refusals_ranked
    where recency = 1

),

{# A line that a meter did not take is settled by its invoice item. #}
settled_by_item as (

    select distinct
        stripe_account,
        entity_key
    from sync_log
    where
        entity = 'invoice_item'
        and step = 'confirmed'

),

problems as (

    select
        ---------- ids
        by_object.stripe_account,
        by_object.entity,
        by_object.entity_key,
        by_object.customer_id,
        last_refusals.request_id,
        by_object.idempotency_key,

        ---------- strings
        by_object.billing_period,
        {# A try without a refusal may have arrived. #}
        case when by_object.refusals = by_object.tries then 'refused' else 'unknown' end as outcome,
        last_refusals.error_code,
        last_refusals.error_body,

        ---------- numerics
        cast(by_object.tries as bigint) as tries,
        last_refusals.http_status,

        ---------- timestamps
        by_object.first_tried_at,
        by_object.last_tried_at
    from by_object
    left join last_refusals
        on
            by_object.stripe_account = last_refusals.stripe_account
            and by_object.entity = last_refusals.entity
            and by_object.entity_key = last_refusals.entity_key
    left join settled_by_item
        on
            by_object.stripe_account = settled_by_item.stripe_account
            and by_object.entity_key = settled_by_item.entity_key
            and by_object.entity = 'meter_event'
    where
        by_object.confirmations = 0
        and settled_by_item.entity_key is null

)

select * from problems
