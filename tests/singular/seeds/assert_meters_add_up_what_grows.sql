{{ config(
    meta={
        'rule': 'charges in stripe_meters.csv price what grows over the service period; no min, latest, average or percentile',
        'dagster': {'ref': {'name': 'stripe_meters'}}
    }
) }}
-- A returned row is a charge on a meter, which adds up, with a metric whose quantity is one for the service period as a whole: a
-- line for each price of the period has it whole.

select distinct
    'seeds/policy/stripe_meters.csv' as seed_file,
    meters.charge_code,
    metrics.metric_code,
    metrics.aggregation,
    metrics.period_aggregation
from {{ ref('stripe_meters') }} as meters
inner join {{ ref('charges') }} as charges
    on meters.charge_code = charges.charge_code
inner join {{ ref('billable_metrics') }} as metrics
    on charges.metric_code = metrics.metric_code
where not {{ grows_over_service_period('metrics.aggregation', 'metrics.period_aggregation') }}
