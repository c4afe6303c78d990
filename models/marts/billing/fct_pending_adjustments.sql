{# A view, so that a close shows at once. #}
{{ config(materialized='view') }}

with

pending_adjustments as (

    select * from {{ ref('int_pending_adjustments') }}

),

adjustments as (

    select
        ---------- ids
        line_id,
        rated_line_id,
        corrects_run_id,
        rerating_id,
        subscription_id,
        customer_id,
        plan_code,
        charge_code,
        metric_code,

        ---------- strings
        line_type,
        description,
        dimensions,
        cause,
        adjustment_status,
        approved_by,
        original_billing_period,
        currency_code,

        ---------- numerics
        cast(metered_quantity as {{ quantity_total_type() }}) as metered_quantity,
        cast(amount as {{ money_type() }}) as amount,
        cast(amount_minor as bigint) as amount_minor,
        cast(rated_amount_minor as bigint) as rated_amount_minor,
        cast(ledger_amount_minor as bigint) as ledger_amount_minor,
        cast(event_count as bigint) as event_count,
        cast(event_keys_hash as {{ event_keys_hash_type() }}) as event_keys_hash,

        ---------- timestamps
        service_period_start_at,
        service_period_end_at
    from pending_adjustments

)

select * from adjustments
