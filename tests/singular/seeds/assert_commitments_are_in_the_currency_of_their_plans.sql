{{ config(
    meta={
        'rule': 'the currency_code of a commitment is that of every plan of its subscription',
        'dagster': {'ref': {'name': 'commitments'}}
    }
) }}
-- A returned row is a commitment and a plan of its subscription that has another currency.

select distinct
    'seeds/pricing/commitments.csv' as seed_file,
    commitments.commitment_code,
    commitments.currency_code,
    subscriptions.subscription_id,
    subscriptions.plan_code,
    known_plans.currency_code as plan_currency_code
from {{ ref('commitments') }} as commitments
inner join {{ ref('stg_subscriptions') }} as subscriptions
    on commitments.subscription_id = subscriptions.subscription_id
inner join {{ ref('plans') }} as known_plans
    on subscriptions.plan_code = known_plans.plan_code
where commitments.currency_code <> known_plans.currency_code
