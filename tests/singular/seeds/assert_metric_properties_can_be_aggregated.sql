{{ config(
    meta={
        'rule': 'the property of a metric is required in every schema version of its event type; it is a number except for unique_count, with a minimum of at least 0 except for unique_count and weighted_sum',
        'dagster': {'ref': {'name': 'billable_metrics'}}
    }
) }}
-- A returned row is a metric and schema version in which the metric's property is missing, optional, not a number or may be
-- negative: a quantity that shrinks cannot be rated by the price under which it grew. Changes of a level may be negative.

select
    'seeds/catalog/billable_metrics.csv' as seed_file,
    metrics.metric_code,
    event_types.event_type,
    event_types.schema_version,
    metrics.aggregation,
    metrics.property_name,
    properties.data_type,
    properties.is_required,
    properties.minimum
from {{ ref('billable_metrics') }} as metrics
inner join {{ ref('event_types') }} as event_types
    on metrics.event_type = event_types.event_type
left join {{ ref('event_properties') }} as properties
    on
        event_types.event_type = properties.event_type
        and event_types.schema_version = properties.schema_version
        and metrics.property_name = properties.property_name
where
    metrics.aggregation <> 'count'
    and (
        not coalesce(properties.is_required, false)
        or (metrics.aggregation <> 'unique_count' and properties.data_type not in ('integer', 'decimal'))
        or (metrics.aggregation not in ('unique_count', 'weighted_sum') and coalesce(properties.minimum, -1) < 0)
    )
