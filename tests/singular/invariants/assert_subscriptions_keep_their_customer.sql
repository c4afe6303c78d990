{{ config(
    meta={
        'rule': 'a billed subscription keeps its customer: end it, and give the other customer a subscription_id of its own',
        'dagster': {'ref': {'name': 'fct_invoice_lines'}}
    }
) }}
-- A returned row is a subscription that was billed to one customer and is another's now. What was billed would be corrected on
-- the wrong invoice.

select distinct
    entries.subscription_id,
    entries.customer_id as billed_customer_id,
    subscriptions.customer_id as present_customer_id
from {{ source('ledger', 'billing_ledger') }} as entries
inner join {{ ref('stg_subscriptions') }} as subscriptions
    on entries.subscription_id = subscriptions.subscription_id
where entries.customer_id <> subscriptions.customer_id
