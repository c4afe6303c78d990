{# A view, so that reading Stripe back shows at once. #}
{{ config(materialized='view') }}

with

stripe_differences as (

    select * from {{ ref('int_stripe_meter_differences') }}

),

rated_lines as (

    select * from {{ ref('fct_rated_lines') }}
    where line_type = 'usage'

),

routes as (

    select * from {{ ref('stripe_routes') }}
    where billing_route = 'meter_event'

),

meters as (

    select * from {{ ref('stripe_meters') }}

),

guard_thresholds as (

    select * from {{ ref('guard_thresholds') }}

),

thresholds as (

    select max(case when guard_code = 'stripe_ratio' then threshold end) as ratio_threshold
    from guard_thresholds

),

rated_units as (

    select
        meters.event_name,
        rated_lines.customer_id,
        rated_lines.service_period_start_at,
        rated_lines.service_period_end_at,
        {# Three decimals of the factor and nine of the quantity are what Snowflake keeps of a product. #}
        sum(cast(rated_lines.metered_quantity * meters.units_per_quantity as decimal(38, 12))) as rated_units
    from rated_lines
    inner join routes
        on rated_lines.subscription_id = routes.subscription_id
    inner join meters
        on rated_lines.charge_code = meters.charge_code
    group by
        meters.event_name,
        rated_lines.customer_id,
        rated_lines.service_period_start_at,
        rated_lines.service_period_end_at

),

reconciliation as (

    select
        ---------- ids
        stripe_differences.stripe_account,
        stripe_differences.customer_id,
        stripe_differences.stripe_customer_id,

        ---------- strings
        stripe_differences.event_name,
        stripe_differences.finding,
        case
            when stripe_differences.difference_units = 0 then 'ok'
            when coalesce(stripe_differences.difference_ratio > thresholds.ratio_threshold, true) then 'red'
            else 'differs'
        end as reconciliation_status,

        ---------- numerics
        cast(coalesce(rated_units.rated_units, 0) as decimal(38, 12)) as rated_units,
        stripe_differences.ledger_units,
        stripe_differences.item_units,
        stripe_differences.not_sent_units,
        stripe_differences.sent_units,
        stripe_differences.unsettled_units,
        stripe_differences.stripe_units,
        stripe_differences.difference_units,
        cast(stripe_differences.difference_ratio as decimal(18, 9)) as difference_ratio,

        ---------- timestamps
        stripe_differences.service_period_start_at,
        stripe_differences.service_period_end_at,
        stripe_differences.read_at
    from stripe_differences
    cross join thresholds
    left join rated_units
        on
            stripe_differences.event_name = rated_units.event_name
            and stripe_differences.customer_id = rated_units.customer_id
            and stripe_differences.service_period_start_at = rated_units.service_period_start_at
            and stripe_differences.service_period_end_at = rated_units.service_period_end_at

)

select * from reconciliation
