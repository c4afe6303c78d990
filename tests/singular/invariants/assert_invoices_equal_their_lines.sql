{{ config(
    meta={
        'rule': 'invariant 7: an invoice is the sum of its lines, and of closed ones the outbox has exactly these lines and amounts',
        'dagster': {'ref': {'name': 'fct_invoices'}}
    }
) }}
-- A returned row is an invoice whose total, lines and outbox disagree.

with

lines as (

    select
        invoice_id,
        count(*) as line_count,
        sum(amount_minor) as amount_minor
    from {{ ref('fct_invoice_lines') }}
    group by invoice_id

),

outbox as (

    select
        invoice_id,
        count(*) as line_count,
        sum(amount_minor) as amount_minor
    from {{ ref('stripe_invoice_items') }}
    group by invoice_id

)

select
    coalesce(invoices.invoice_id, lines.invoice_id, outbox.invoice_id) as invoice_id,
    invoices.total_amount_minor,
    lines.amount_minor as lines_amount_minor,
    outbox.amount_minor as outbox_amount_minor
from {{ ref('fct_invoices') }} as invoices
full outer join lines
    on invoices.invoice_id = lines.invoice_id
full outer join outbox
    on coalesce(invoices.invoice_id, lines.invoice_id) = outbox.invoice_id
where
    invoices.invoice_id is null
    or lines.invoice_id is null
    or (invoices.invoice_state = 'draft') <> (outbox.invoice_id is null)
    or invoices.total_amount_minor <> lines.amount_minor
    or invoices.total_amount_minor <> outbox.amount_minor
    or invoices.line_count <> lines.line_count
    or invoices.line_count <> outbox.line_count
