with

invoice_lines as (

    select * from {{ ref('fct_invoice_lines') }}

),

customers as (

    select * from {{ ref('stg_customers') }}

),

metrics as (

    select * from {{ ref('dim_billable_metrics') }}

),

currencies as (

    select * from {{ ref('currencies') }}

),

event_policy as (

    select * from {{ ref('stg_event_policy') }}

),

invoice_items as (

    select
        invoice_lines.line_id,
        invoice_lines.invoice_id,
        invoice_lines.customer_id,
        customers.customer_name,
        customers.stripe_customer_id,
        invoice_lines.subscription_id,
        invoice_lines.line_type,
        invoice_lines.charge_code,
        invoice_lines.price_version,
        invoice_lines.metric_code,
        invoice_lines.billing_period,
        invoice_lines.description,
        invoice_lines.currency_code as currency,
        invoice_lines.amount_minor,
        {# In the order in which somebody would have to act. #}
        case
            when
                {{ dbt.dateadd('hour', 'event_policy.grace_period_hours', 'invoice_lines.due_at') }}
                > {{ as_of() }}
                then 'period_open'
            when not coalesce(metrics.is_confirmed_by_finance, true) then 'metric_not_confirmed'
            when currencies.stripe_minor_units is null or currencies.stripe_minor_units <> currencies.minor_units
                then 'currency_unit_differs'
            when invoice_lines.amount_minor = 0 then 'zero_amount'
        end as hold_reason,
        invoice_lines.service_period_start_at,
        invoice_lines.service_period_end_at
    from invoice_lines
    cross join event_policy
    inner join customers
        on invoice_lines.customer_id = customers.customer_id
    {# Recurring fees and commitments have no metric. #}
    left join metrics
        on invoice_lines.metric_code = metrics.metric_code
    inner join currencies
        on invoice_lines.currency_code = currencies.currency_code

)

select * from invoice_items
