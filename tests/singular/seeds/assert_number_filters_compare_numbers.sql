{{ config(
    meta={
        'rule': 'greater_than, at_least, less_than and at_most compare an integer or decimal property with a number of at most 19 digits before and 9 after the point',
        'dagster': {'ref': {'name': 'metric_filters'}}
    }
) }}
-- A returned row is a filter and schema version in which what is compared is not a number, or the filter's value is none.

with

number_filters as (

    select
        metric_code,
        property_name,
        operator,
        filter_value,
        {{ dbt.safe_cast('filter_value', quantity_type()) }} as filter_number
    from {{ ref('metric_filters') }}
    where operator in ('greater_than', 'at_least', 'less_than', 'at_most')

)

select
    'seeds/catalog/metric_filters.csv' as seed_file,
    number_filters.metric_code,
    number_filters.property_name,
    number_filters.operator,
    number_filters.filter_value,
    properties.event_type,
    properties.schema_version,
    properties.data_type
from number_filters
inner join {{ ref('billable_metrics') }} as metrics
    on number_filters.metric_code = metrics.metric_code
inner join {{ ref('event_properties') }} as properties
    on
        metrics.event_type = properties.event_type
        and number_filters.property_name = properties.property_name
where
    properties.data_type not in ('integer', 'decimal')
    or case
        when not {{ matches_number('number_filters.filter_value') }} then true
        when number_filters.filter_number is null then true
        else {{ has_more_decimals_than_quantity('number_filters.filter_value', 'number_filters.filter_number') }}
    end
