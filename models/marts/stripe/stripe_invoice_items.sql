{# A view, so that the sync sees what a close has just appended. #}
{{ config(materialized='view') }}

with

closed_lines as (

    select * from {{ ref('fct_invoice_lines') }}
    where run_id is not null

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

meter_events as (

    select * from {{ ref('stripe_meter_events') }}

),

{# The unit price of a line that one tier made alone; the tier is then the only object of the list. A price per package or the
   rate of a percentage is no price of a unit, and an adjustment may be made of several prices. #}
lines_of_one_tier as (

    select
        line_id,
        billable_quantity,
        amount,
        cast(
            {{ json_text(
                "case when tiers <> '[]' and tiers not like '%},%' then replace(replace(tiers, '[', ''), ']', '') end",
                json_path("'unit_amount'")
            ) }} as {{ price_type() }}
        ) as unit_amount
    from closed_lines
    where
        line_type = 'usage'
        and entry_kind = 'original'
        and charge_model in ('per_unit', 'graduated', 'volume', 'matrix')
        and discount_amount = 0
        and maximum_reduction_amount = 0
        and amount_minor > 0

),

{# Rounded lines, parts of a period and flat fees are left out by the product, which loses no digit. #}
lines_with_unit_price as (

    select
        line_id,
        billable_quantity,
        unit_amount
    from lines_of_one_tier
    where {{ multiply_amount('billable_quantity', 'unit_amount') }} = amount

),

{# What is in the ledger is owed whatever has become of the seeds since. Nobody has confirmed a metric that is gone; recurring
   fees and commitments have none. #}
invoice_items as (

    select
        closed_lines.line_id,
        closed_lines.invoice_id,
        closed_lines.run_id,
        closed_lines.customer_id,
        closed_lines.customer_name,
        customers.stripe_customer_id,
        closed_lines.subscription_id,
        closed_lines.line_type,
        closed_lines.charge_code,
        closed_lines.price_version,
        closed_lines.metric_code,
        closed_lines.billing_period,
        closed_lines.description,
        closed_lines.currency_code as currency,
        closed_lines.amount_minor,
        lines_with_unit_price.billable_quantity as quantity,
        {{ price_in_minor_units('lines_with_unit_price.unit_amount', 'currencies.minor_units') }} as unit_amount_minor,
        {# In the order in which somebody would have to act. #}
        case
            when closed_lines.metric_code is not null and not coalesce(metrics.is_confirmed_by_finance, false)
                then 'metric_not_confirmed'
            when currencies.stripe_minor_units is null or currencies.stripe_minor_units <> currencies.minor_units
                then 'currency_unit_differs'
            when closed_lines.amount_minor = 0 then 'zero_amount'
            {# Unless Stripe's meters cannot take it: that depends on the time, so the sync decides. #}
            when meter_events.line_id is not null then 'meter_event'
        end as hold_reason,
        closed_lines.service_period_start_at,
        closed_lines.service_period_end_at
    from closed_lines
    left join customers
        on closed_lines.customer_id = customers.customer_id
    left join metrics
        on closed_lines.metric_code = metrics.metric_code
    left join currencies
        on closed_lines.currency_code = currencies.currency_code
    left join lines_with_unit_price
        on closed_lines.line_id = lines_with_unit_price.line_id
    left join meter_events
        on closed_lines.line_id = meter_events.line_id

)

select * from invoice_items
