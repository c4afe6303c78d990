{# A view, so that a close shows at once. #}
{{ config(materialized='view') }}

with

invoice_lines as (

    select * from {{ ref('fct_invoice_lines') }}

),

corrected_runs as (

    select distinct
        customer_id,
        currency_code,
        corrects_run_id
    from invoice_lines
    where run_id is not null and entry_kind = 'adjustment'

),

invoices as (

    select
        invoice_lines.invoice_id,
        invoice_lines.customer_id,
        max(invoice_lines.customer_name) as customer_name,
        invoice_lines.run_id,
        invoice_lines.billing_period,
        invoice_lines.currency_code,
        case
            when invoice_lines.run_id is null then 'draft'
            when count(corrected_runs.corrects_run_id) > 0 then 'adjusted'
            else 'closed'
        end as invoice_state,
        case when sum(invoice_lines.amount_minor) < 0 then 'credit_note' else 'invoice' end as document_type,
        count(*) as line_count,
        cast(sum(invoice_lines.amount) as {{ money_type() }}) as total_amount,
        cast(sum(invoice_lines.amount_minor) as bigint) as total_amount_minor,
        cast(sum(invoice_lines.event_count) as bigint) as event_count,
        min(invoice_lines.service_period_start_at) as first_service_period_start_at,
        max(invoice_lines.service_period_end_at) as last_service_period_end_at
    from invoice_lines
    left join corrected_runs
        on
            invoice_lines.run_id = corrected_runs.corrects_run_id
            and invoice_lines.customer_id = corrected_runs.customer_id
            and invoice_lines.currency_code = corrected_runs.currency_code
    group by
        invoice_lines.invoice_id,
        invoice_lines.customer_id,
        invoice_lines.run_id,
        invoice_lines.billing_period,
        invoice_lines.currency_code

)

select * from invoices
