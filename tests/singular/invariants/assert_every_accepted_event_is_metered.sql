{{ config(
    meta={
        'rule': 'every accepted event is metered by each metric of its type that has no filters, or left out with a reason',
        'dagster': {'ref': {'name': 'int_usage_hourly'}}
    }
) }}
-- A returned row is a metric and customer whose metered events are not the accepted ones without those left out.

with

accepted as (

    select
        definitions.metric_code,
        usage_events.customer_id,
        count(*) as events
    from {{ ref('stg_usage_events') }} as usage_events
    inner join {{ ref('int_metric_definitions') }} as definitions
        on usage_events.event_type = definitions.event_type
    where not definitions.has_filters and not definitions.is_residual
    group by definitions.metric_code, usage_events.customer_id

),

not_metered as (

    select
        definitions.metric_code,
        events_not_metered.customer_id,
        count(*) as events
    from {{ ref('int_events_not_metered') }} as events_not_metered
    inner join {{ ref('int_metric_definitions') }} as definitions
        on events_not_metered.event_type = definitions.event_type
    group by definitions.metric_code, events_not_metered.customer_id

),

metered as (

    select
        usage_hourly.metric_code,
        usage_hourly.customer_id,
        sum(usage_hourly.event_count) as events
    from {{ ref('int_usage_hourly') }} as usage_hourly
    inner join {{ ref('int_metric_definitions') }} as definitions
        on usage_hourly.metric_code = definitions.metric_code
    where
        not definitions.has_filters
        and not definitions.is_residual
        and usage_hourly.event_count > 0
    group by usage_hourly.metric_code, usage_hourly.customer_id

)

select
    coalesce(accepted.metric_code, metered.metric_code) as metric_code,
    coalesce(accepted.customer_id, metered.customer_id) as customer_id,
    accepted.events as accepted_events,
    not_metered.events as events_not_metered,
    metered.events as metered_events
from accepted
full outer join metered
    on
        accepted.metric_code = metered.metric_code
        and accepted.customer_id = metered.customer_id
left join not_metered
    on
        coalesce(accepted.metric_code, metered.metric_code) = not_metered.metric_code
        and coalesce(accepted.customer_id, metered.customer_id) = not_metered.customer_id
where coalesce(accepted.events, 0) <> coalesce(not_metered.events, 0) + coalesce(metered.events, 0)
