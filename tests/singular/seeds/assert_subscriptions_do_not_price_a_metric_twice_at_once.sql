{{ config(
    meta={
        'rule': 'no two subscriptions of a customer that run at the same time price the same metric: its usage would be billed twice',
        'dagster': {'ref': {'name': 'stg_subscriptions'}}
    }
) }}
-- A returned row is a pair of overlapping phases, of different subscriptions, with a metric that both price.

with

priced_metrics as (

    select distinct
        subscriptions.subscription_id,
        subscriptions.customer_id,
        subscriptions.time_zone,
        subscriptions.started_local_at,
        charges.metric_code,
        subscriptions.started_at,
        subscriptions.ended_at
    from {{ ref('stg_subscriptions') }} as subscriptions
    inner join {{ ref('charges') }} as charges
        on subscriptions.plan_code = charges.plan_code

)

select
    'seeds/accounts/subscriptions.csv, or what stg_subscriptions reads instead' as seed_file,
    one.customer_id,
    one.subscription_id,
    other.subscription_id as other_subscription_id,
    one.started_local_at as started_at,
    other.started_local_at as other_started_at,
    one.metric_code
from priced_metrics as one
inner join priced_metrics as other
    on
        one.customer_id = other.customer_id
        and one.metric_code = other.metric_code
        and one.subscription_id < other.subscription_id
        and one.started_at < coalesce(other.ended_at, cast('9999-12-31' as datetime))
        and other.started_at < coalesce(one.ended_at, cast('9999-12-31' as datetime))
