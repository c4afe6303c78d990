{{ config(
    meta={
        'rule': 'time_zone is a name of the IANA time zone database',
        'dagster': {'ref': {'name': 'subscriptions'}}
    }
) }}
-- A returned row is a phase of a subscription whose time zone the warehouse does not know.

select
    'seeds/accounts/subscriptions.csv' as seed_file,
    subscription_id,
    time_zone,
    started_at
from {{ ref('subscriptions') }}
where not {{ is_known_time_zone('time_zone') }}
