{{ config(
    meta={
        'rule': 'invariant 1: metered events = events on invoice lines + events of unbilled usage, for every metric, customer and charge',
        'dagster': {'ref': {'name': 'fct_unbilled_usage'}}
    }
) }}
-- A returned row is usage that is neither on an invoice line nor in fct_unbilled_usage, or in both.

with

{# What covers the usage of a metric: the charges of the plans that the customer has at the time. #}
coverage as (

    select distinct
        parts.customer_id,
        charges.metric_code,
        charges.charge_code,
        parts.part_start_at,
        parts.part_end_at
    from {{ ref('int_service_period_parts') }} as parts
    inner join {{ ref('charges') }} as charges
        on
            parts.plan_code = charges.plan_code
            and (charges.customer_id is null or parts.customer_id = charges.customer_id)

),

{# What should appear: once for each charge that covers it, or once if there is none. #}
expected as (

    select
        usage.customer_id,
        usage.metric_code,
        coverage.charge_code,
        sum(usage.event_count) as events
    from {{ ref('int_usage_hourly') }} as usage
    left join coverage
        on
            usage.customer_id = coverage.customer_id
            and usage.metric_code = coverage.metric_code
            and usage.window_start_at >= coverage.part_start_at
            and usage.window_start_at < coverage.part_end_at
    where usage.event_count > 0
    group by usage.customer_id, usage.metric_code, coverage.charge_code

),

found as (

    select
        customer_id,
        metric_code,
        charge_code,
        event_count
    from {{ ref('fct_rated_lines') }}
    where line_type = 'usage'

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
