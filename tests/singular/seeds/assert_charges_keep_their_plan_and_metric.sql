{{ config(
    meta={
        'rule': 'all price versions of a charge_code have the same plan_code and metric_code',
        'dagster': {'ref': {'name': 'charges'}}
    }
) }}
-- A returned row is a charge whose versions disagree on what is priced.

select
    'seeds/pricing/charges.csv' as seed_file,
    charge_code,
    min(plan_code) as first_plan_code,
    max(plan_code) as last_plan_code,
    min(metric_code) as first_metric_code,
    max(metric_code) as last_metric_code
from {{ ref('charges') }}
group by charge_code
having
    min(plan_code) <> max(plan_code)
    or min(metric_code) <> max(metric_code)
