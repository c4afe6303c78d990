{{ config(
    meta={
        'rule': 'usage charges in the plans of subscriptions that go by meter_event stand in stripe_meters.csv',
        'dagster': {'ref': {'name': 'stripe_routes'}}
    }
) }}
-- A returned row is a usage charge that a subscription's usage would be metered for, without a meter to send it to.
-- Of seeds and of staging models whose seed has no tests: other models are not built, and what tests them does not run, once
-- another test of their seeds has failed.

select distinct
    'seeds/policy/stripe_routes.csv' as seed_file,
    routes.subscription_id,
    phases.plan_code,
    charges.charge_code
from {{ ref('stripe_routes') }} as routes
inner join {{ ref('stg_subscriptions') }} as phases
    on routes.subscription_id = phases.subscription_id
inner join {{ ref('charges') }} as charges
    on phases.plan_code = charges.plan_code
left join {{ ref('stripe_meters') }} as meters
    on charges.charge_code = meters.charge_code
where
    routes.billing_route = 'meter_event'
    and charges.metric_code is not null
    and meters.charge_code is null
