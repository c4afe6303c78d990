{{ config(
    meta={
        'rule': 'a credit grant has the currency of at least one plan that its customer subscribes to',
        'dagster': {'ref': {'name': 'credit_grants'}}
    }
) }}
-- A returned row is a grant that no line could ever be paid by.

with

customer_currencies as (

    select distinct
        subscriptions.customer_id,
        known_plans.currency_code
    from {{ ref('stg_subscriptions') }} as subscriptions
    inner join {{ ref('plans') }} as known_plans
        on subscriptions.plan_code = known_plans.plan_code

)

select
    'seeds/pricing/credit_grants.csv' as seed_file,
    credit_grants.grant_code,
    credit_grants.customer_id,
    credit_grants.currency_code
from {{ ref('credit_grants') }} as credit_grants
left join customer_currencies
    on
        credit_grants.customer_id = customer_currencies.customer_id
        and credit_grants.currency_code = customer_currencies.currency_code
where customer_currencies.customer_id is null
