{{ config(
    meta={
        'rule': 'all price versions of a charge_code have the same plan_code, metric_code and zero_usage',
        'dagster': {'ref': {'name': 'charges'}}
    }
) }}
-- A returned row is a charge whose versions disagree on what is priced or on what is due without usage.

select
    'seeds/pricing/charges.csv' as seed_file,
    charge_code,
    min(plan_code) as first_plan_code,
    max(plan_code) as last_plan_code,
    min(coalesce(metric_code, 'none')) as first_metric_code,
    max(coalesce(metric_code, 'none')) as last_metric_code,
    min(zero_usage) as first_zero_usage,
    max(zero_usage) as last_zero_usage
from {{ ref('charges') }}
group by charge_code
having
    min(plan_code) <> max(plan_code)
    or min(coalesce(metric_code, 'none')) <> max(coalesce(metric_code, 'none'))
    or min(zero_usage) <> max(zero_usage)
