{{ config(
    meta={
        'rule': 'invariant 5: of closed periods, the ledger and the pending adjustments add up to what is rated now',
        'dagster': {'ref': {'name': 'fct_pending_adjustments'}}
    }
) }}
-- A returned row is a charge and service period of which the ledger, adjustments and drafts are not what is rated now.

with

charge_amounts as (

    select
        subscription_id,
        coalesce(charge_code, commitment_code) as charged,
        service_period_start_at,
        currency_code,
        amount_minor as rated_minor,
        0 as accounted_minor
    from {{ ref('fct_rated_lines') }}

    union all

    select
        subscription_id,
        coalesce(charge_code, commitment_code) as charged,
        service_period_start_at,
        currency_code,
        0 as rated_minor,
        amount_minor as accounted_minor
    from {{ source('ledger', 'billing_ledger') }}

    union all

    select
        subscription_id,
        coalesce(charge_code, commitment_code) as charged,
        service_period_start_at,
        currency_code,
        0 as rated_minor,
        amount_minor as accounted_minor
    from {{ ref('int_line_differences') }}

)

select
    subscription_id,
    charged,
    service_period_start_at,
    currency_code,
    sum(rated_minor) as rated_minor,
    sum(accounted_minor) as accounted_minor
from charge_amounts
group by subscription_id, charged, service_period_start_at, currency_code
having sum(rated_minor) <> sum(accounted_minor)
