with

invoice_lines as (

    select * from {{ ref('fct_invoice_lines') }}

),

customers as (

    select * from {{ ref('stg_customers') }}

),

invoices as (

    select
        invoice_lines.invoice_id,
        invoice_lines.customer_id,
        customers.customer_name,
        invoice_lines.billing_period,
        invoice_lines.currency_code,
        'draft' as invoice_state,
        count(*) as line_count,
        cast(sum(invoice_lines.amount) as {{ money_type() }}) as total_amount,
        cast(sum(invoice_lines.amount_minor) as bigint) as total_amount_minor,
        cast(sum(invoice_lines.event_count) as bigint) as event_count,
        min(invoice_lines.service_period_start_at) as first_service_period_start_at,
        max(invoice_lines.service_period_end_at) as last_service_period_end_at
    from invoice_lines
    inner join customers
        on invoice_lines.customer_id = customers.customer_id
    group by
        invoice_lines.invoice_id,
        invoice_lines.customer_id,
        customers.customer_name,
        invoice_lines.billing_period,
        invoice_lines.currency_code

)

select * from invoices
