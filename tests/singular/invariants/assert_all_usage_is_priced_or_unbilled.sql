{{ config(
    meta={
        'rule': 'invariant 1: metered events = events on invoice lines + events of unbilled usage, for every metric, customer and charge',
        'dagster': {'ref': {'name': 'fct_unbilled_usage'}}
    }
) }}
-- A returned row is usage that is neither on an invoice line nor in fct_unbilled_usage, or in both.

with

charges as (

    select distinct
        plan_code,
        metric_code,
        charge_code
    from {{ ref('charges') }}

),

{# What should appear: once for each charge of the subscriptions that cover it, or once if there is none. #}
expected as (

    select
        usage.customer_id,
        usage.metric_code,
        charges.charge_code,
        sum(usage.event_count) as events
    from {{ ref('int_usage_hourly') }} as usage
    inner join {{ ref('int_service_periods') }} as service_periods
        on
            usage.customer_id = service_periods.customer_id
            and usage.window_start_at >= service_periods.service_period_start_at
            and usage.window_start_at < service_periods.service_period_end_at
    inner join charges
        on
            service_periods.plan_code = charges.plan_code
            and usage.metric_code = charges.metric_code
    where usage.event_count > 0
    group by usage.customer_id, usage.metric_code, charges.charge_code

    union all

    select
        usage.customer_id,
        usage.metric_code,
        cast(null as varchar) as charge_code,
        sum(usage.event_count) as events
    from {{ ref('int_usage_hourly') }} as usage
    where
        usage.event_count > 0
        and not exists (
            select 1
            from {{ ref('int_service_periods') }} as service_periods
            inner join charges
                on service_periods.plan_code = charges.plan_code
            where
                usage.customer_id = service_periods.customer_id
                and usage.metric_code = charges.metric_code
                and usage.window_start_at >= service_periods.service_period_start_at
                and usage.window_start_at < service_periods.service_period_end_at
        )
    group by usage.customer_id, usage.metric_code

),

found as (

    select
        customer_id,
        metric_code,
        charge_code,
        event_count
    from {{ ref('fct_invoice_lines') }}

    union all

    select
        customer_id,
        metric_code,
        charge_code,
        event_count
    from {{ ref('fct_unbilled_usage') }}

),

found_totals as (

    select
        customer_id,
        metric_code,
        charge_code,
        sum(event_count) as events
    from found
    group by customer_id, metric_code, charge_code

)

select
    coalesce(expected.customer_id, found_totals.customer_id) as customer_id,
    coalesce(expected.metric_code, found_totals.metric_code) as metric_code,
    coalesce(expected.charge_code, found_totals.charge_code) as charge_code,
    expected.events as metered_events,
    found_totals.events as priced_or_unbilled_events
from expected
full outer join found_totals
    on
        expected.customer_id = found_totals.customer_id
        and expected.metric_code = found_totals.metric_code
        and coalesce(expected.charge_code, '') = coalesce(found_totals.charge_code, '')
where coalesce(expected.events, 0) <> coalesce(found_totals.events, 0)
