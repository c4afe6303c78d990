{# A view, so that a close shows at once. #}
{{ config(materialized='view') }}

with

invoice_lines as (

    select * from {{ ref('fct_invoice_lines') }}

),

invoices as (

    select
        invoice_id,
        customer_id,
        max(customer_name) as customer_name,
        run_id,
        billing_period,
        currency_code,
        case
            when run_id is null then 'draft'
            when max(case when line_state = 'adjusted' then 1 else 0 end) = 1 then 'adjusted'
            else 'closed'
        end as invoice_state,
        case when sum(amount_minor) < 0 then 'credit_note' else 'invoice' end as document_type,
        count(*) as line_count,
        cast(sum(amount) as {{ money_type() }}) as total_amount,
        cast(sum(amount_minor) as bigint) as total_amount_minor,
        cast(sum(event_count) as bigint) as event_count,
        min(service_period_start_at) as first_service_period_start_at,
        max(service_period_end_at) as last_service_period_end_at
    from invoice_lines
    group by
        invoice_id,
        customer_id,
        run_id,
        billing_period,
        currency_code

)

select * from invoices
