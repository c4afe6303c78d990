{{ config(
    meta={
        'rule': 'every accepted event is metered by each metric of its type that has no filters',
        'dagster': {'ref': {'name': 'int_usage_hourly'}}
    }
) }}
-- A returned row is a metric and customer whose metered events are not the accepted ones.

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
    metered.events as metered_events
from accepted
full outer join metered
    on
        accepted.metric_code = metered.metric_code
        and accepted.customer_id = metered.customer_id
where coalesce(accepted.events, 0) <> coalesce(metered.events, 0)
