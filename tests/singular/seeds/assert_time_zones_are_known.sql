{{ config(
    meta={
        'rule': 'time_zone is a name of the IANA time zone database',
        'dagster': {'ref': {'name': 'stg_subscriptions'}}
    }
) }}
-- A returned row is a phase of a subscription whose time zone the warehouse does not know.

select
    'seeds/accounts/subscriptions.csv, or what stg_subscriptions reads instead' as seed_file,
    subscription_id,
    time_zone,
    started_local_at
from {{ ref('stg_subscriptions') }}
where not {{ is_known_time_zone('time_zone') }}
