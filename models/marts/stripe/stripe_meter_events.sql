{# A view, so that the sync sees what a close has just appended. #}
{{ config(materialized='view') }}

with

closed_lines as (

    select * from {{ ref('fct_invoice_lines') }}
    where
        run_id is not null
        and line_type = 'usage'

),

routes as (

    select * from {{ ref('stripe_routes') }}
    where billing_route = 'meter_event'

),

meters as (

    select * from {{ ref('stripe_meters') }}

),

customers as (

    select * from {{ ref('stg_customers') }}

),

metrics as (

    select * from {{ ref('dim_billable_metrics') }}

),

metered_lines as (

    select
        closed_lines.line_id,
        closed_lines.rated_line_id,
        closed_lines.run_id,
        closed_lines.customer_id,
        customers.stripe_customer_id,
        closed_lines.subscription_id,
        closed_lines.charge_code,
        closed_lines.metric_code,
        closed_lines.billing_period,
        meters.event_name,
        meters.display_name,
        closed_lines.metered_quantity,
        closed_lines.service_period_start_at,
        closed_lines.service_period_end_at,
        coalesce(metrics.is_confirmed_by_finance, false) as is_confirmed,
        {# Three decimals of the factor and nine of the quantity are what Snowflake keeps of a product. #}
        cast(closed_lines.metered_quantity * meters.units_per_quantity as decimal(38, 12)) as meter_units
    from closed_lines
    inner join routes
        on closed_lines.subscription_id = routes.subscription_id
    left join meters
        on closed_lines.charge_code = meters.charge_code
    left join customers
        on closed_lines.customer_id = customers.customer_id
    left join metrics
        on closed_lines.metric_code = metrics.metric_code

),

meter_events as (

    select
        line_id,
        rated_line_id,
        run_id,
        customer_id,
        stripe_customer_id,
        subscription_id,
        charge_code,
        metric_code,
        billing_period,
        event_name,
        display_name,
        {# In the order in which somebody would have to act. #}
        case
            when not is_confirmed then 'metric_not_confirmed'
            when metered_quantity = 0 then 'zero_quantity'
            when event_name is null then 'no_meter'
            when meter_units <> floor(meter_units) then 'fraction_of_meter_unit'
            when abs(meter_units) >= 1000000000000000 then 'too_many_digits'
        end as hold_reason,
        metered_quantity,
        case
            when meter_units = floor(meter_units) and abs(meter_units) < 1000000000000000 then cast(meter_units as bigint)
        end as value_units,
        {{ stripe_event_minute('rated_line_id', 'service_period_start_at', 'service_period_end_at') }} as event_at,
        service_period_start_at,
        service_period_end_at
    from metered_lines

)

select * from meter_events
