{{ config(
    meta={
        'rule': 'metric_filters.csv and metric_dimensions.csv name properties that event_properties.csv declares for the event type',
        'dagster': {'ref': {'name': 'metric_filters'}}
    }
) }}
-- A returned row is a filter or dimension on a property that no schema version of the event type has.

with

used_properties as (

    select
        'seeds/catalog/metric_filters.csv' as seed_file,
        metric_code,
        property_name
    from {{ ref('metric_filters') }}

    union all

    select
        'seeds/catalog/metric_dimensions.csv' as seed_file,
        metric_code,
        property_name
    from {{ ref('metric_dimensions') }}

)

select
    used_properties.*,
    metrics.event_type
from used_properties
inner join {{ ref('billable_metrics') }} as metrics
    on used_properties.metric_code = metrics.metric_code
left join {{ ref('event_properties') }} as properties
    on
        metrics.event_type = properties.event_type
        and used_properties.property_name = properties.property_name
where properties.property_name is null
