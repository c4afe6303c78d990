{{ config(
    meta={
        'rule': 'a fixed discount has the currency of its plan, and that of at least one plan its customer subscribes to',
        'dagster': {'ref': {'name': 'discounts'}}
    }
) }}
-- A returned row is a fixed discount that no line could ever be reduced by.

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
    'seeds/pricing/discounts.csv' as seed_file,
    discounts.discount_code,
    discounts.customer_id,
    discounts.plan_code,
    discounts.currency_code,
    known_plans.currency_code as plan_currency_code
from {{ ref('discounts') }} as discounts
left join {{ ref('plans') }} as known_plans
    on discounts.plan_code = known_plans.plan_code
left join customer_currencies
    on
        discounts.customer_id = customer_currencies.customer_id
        and discounts.currency_code = customer_currencies.currency_code
where
    discounts.discount_type = 'fixed'
    and (
        coalesce(discounts.currency_code <> known_plans.currency_code, false)
        or (discounts.customer_id is not null and customer_currencies.customer_id is null)
    )
