{# A view, so that reading Stripe back shows at once. #}
{{ config(materialized='view') }}

with

stripe_differences as (

    select * from {{ ref('int_stripe_invoice_differences') }}

),

ledger_lines as (

    select * from {{ source('ledger', 'billing_ledger') }}

),

pending_adjustments as (

    select * from {{ ref('fct_pending_adjustments') }}

),

guard_thresholds as (

    select * from {{ ref('guard_thresholds') }}

),

thresholds as (

    select
        max(case when guard_code = 'stripe_amount' then threshold end) as amount_threshold,
        max(case when guard_code = 'stripe_ratio' then threshold end) as ratio_threshold
    from guard_thresholds

),

{# What the events now say otherwise of a line counts at the invoice that billed it first. #}
pending_by_invoice as (

    select
        ledger_lines.invoice_id,
        ledger_lines.currency_code,
        sum(pending_adjustments.amount_minor) as pending_adjustment_minor
    from ledger_lines
    inner join pending_adjustments
        on
            ledger_lines.rated_line_id = pending_adjustments.rated_line_id
            and ledger_lines.currency_code = pending_adjustments.currency_code
    where ledger_lines.entry_number = 1
    group by ledger_lines.invoice_id, ledger_lines.currency_code

),

reconciliation as (

    select
        ---------- ids
        stripe_differences.stripe_account,
        stripe_differences.invoice_id,

        ---------- strings
        stripe_differences.currency_code,
        case
            when stripe_differences.difference_minor = 0 and stripe_differences.findings is null then 'ok'
            when
                coalesce(stripe_differences.differing_amount > thresholds.amount_threshold, true)
                or coalesce(stripe_differences.difference_ratio > thresholds.ratio_threshold, true)
                then 'red'
            else 'differs'
        end as reconciliation_status,
        stripe_differences.findings,

        ---------- numerics
        cast(
            stripe_differences.ledger_amount_minor + coalesce(pending_by_invoice.pending_adjustment_minor, 0) as bigint
        ) as rated_amount_minor,
        stripe_differences.ledger_amount_minor,
        stripe_differences.not_sent_amount_minor,
        stripe_differences.sent_amount_minor,
        stripe_differences.stripe_amount_minor,
        stripe_differences.difference_minor,
        cast(stripe_differences.difference_amount as {{ money_type() }}) as difference_amount,
        cast(stripe_differences.difference_ratio as decimal(18, 9)) as difference_ratio,
        cast(stripe_differences.missing_lines as bigint) as missing_lines,
        cast(stripe_differences.void_lines as bigint) as void_lines,
        cast(stripe_differences.doubled_lines as bigint) as doubled_lines,
        cast(stripe_differences.changed_lines as bigint) as changed_lines,
        cast(stripe_differences.foreign_items as bigint) as foreign_items,
        cast(stripe_differences.discounted_invoices as bigint) as discounted_invoices,

        ---------- timestamps
        stripe_differences.read_at
    from stripe_differences
    cross join thresholds
    left join pending_by_invoice
        on
            stripe_differences.invoice_id = pending_by_invoice.invoice_id
            and stripe_differences.currency_code = pending_by_invoice.currency_code

)

select * from reconciliation
