{{ config(
    meta={
        'rule': 'the plan of a charge that a credit grant names has the currency of the grant',
        'dagster': {'ref': {'name': 'credit_grant_charges'}}
    }
) }}
-- A returned row is a charge whose lines the grant could never pay.

select distinct
    'seeds/pricing/credit_grant_charges.csv' as seed_file,
    credit_grant_charges.grant_code,
    credit_grant_charges.charge_code,
    credit_grants.currency_code,
    known_plans.plan_code,
    known_plans.currency_code as plan_currency_code
from {{ ref('credit_grant_charges') }} as credit_grant_charges
inner join {{ ref('credit_grants') }} as credit_grants
    on credit_grant_charges.grant_code = credit_grants.grant_code
inner join {{ ref('charges') }} as charges
    on credit_grant_charges.charge_code = charges.charge_code
inner join {{ ref('plans') }} as known_plans
    on charges.plan_code = known_plans.plan_code
where credit_grants.currency_code <> known_plans.currency_code
