{{ config(
    meta={
        'rule': 'at most five percentage discounts hold for a charge of a customer at once',
        'dagster': {'ref': {'name': 'discounts'}}
    }
) }}
-- A returned row is a discount from whose valid_from on more than five hold for a charge that the customer subscribes to. The
-- most that ever hold at once do so where one of them begins.

with

subscribed_charges as (

    select distinct
        subscriptions.customer_id,
        subscriptions.plan_code,
        charges.charge_code
    from {{ ref('stg_subscriptions') }} as subscriptions
    inner join {{ ref('charges') }} as charges
        on subscriptions.plan_code = charges.plan_code

),

discounted_charges as (

    select
        subscribed_charges.*,
        discounts.discount_code,
        discounts.valid_from,
        coalesce(discounts.valid_to, cast('9999-12-31' as datetime)) as valid_to
    from subscribed_charges
    inner join {{ ref('discounts') }} as discounts
        on
            (discounts.customer_id is null or subscribed_charges.customer_id = discounts.customer_id)
            and (discounts.plan_code is null or subscribed_charges.plan_code = discounts.plan_code)
            and (discounts.charge_code is null or subscribed_charges.charge_code = discounts.charge_code)
    where discounts.discount_type = 'percentage'

)

select
    'seeds/pricing/discounts.csv' as seed_file,
    one.discount_code,
    one.customer_id,
    one.plan_code,
    one.charge_code,
    one.valid_from,
    count(*) as discounts_at_once
from discounted_charges as one
inner join discounted_charges as other
    on
        one.customer_id = other.customer_id
        and one.plan_code = other.plan_code
        and one.charge_code = other.charge_code
        and one.valid_from >= other.valid_from
        and one.valid_from < other.valid_to
group by one.discount_code, one.customer_id, one.plan_code, one.charge_code, one.valid_from
having count(*) > 5
