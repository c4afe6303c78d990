{{ config(
    meta={
        'rule': 'all phases of a subscription_id have the same customer_id, time_zone and anchor_date',
        'dagster': {'ref': {'name': 'stg_subscriptions'}}
    }
) }}
-- A returned row is a subscription whose phases disagree on who is billed, or on when its periods begin.

select
    'seeds/accounts/subscriptions.csv, or what stg_subscriptions reads instead' as seed_file,
    subscription_id,
    count(*) as phases,
    count(anchor_date) as phases_with_an_anchor,
    min(customer_id) as first_customer_id,
    max(customer_id) as last_customer_id,
    min(time_zone) as first_time_zone,
    max(time_zone) as last_time_zone,
    min(anchor_date) as first_anchor_date,
    max(anchor_date) as last_anchor_date
from {{ ref('stg_subscriptions') }}
group by subscription_id
having
    min(customer_id) <> max(customer_id)
    or min(time_zone) <> max(time_zone)
    or min(anchor_date) <> max(anchor_date)
    or count(anchor_date) not in (0, count(*))
