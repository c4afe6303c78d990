{# A view, so that reading Stripe back shows at once. #}
{{ config(materialized='view') }}

with

readbacks as (

    select * from {{ source('ops', 'stripe_readback') }}

),

sync_log as (

    select * from {{ source('ops', 'stripe_sync_log') }}

),

ledger_lines as (

    select * from {{ source('ledger', 'billing_ledger') }}

),

currencies as (

    select * from {{ ref('currencies') }}

),

last_readbacks as (

    select
        stripe_account,
        max_by(readback_id, read_at) as readback_id,
        max(read_at) as read_at
    from readbacks
    where entity = 'account'
    group by stripe_account

),

{# Nobody owes what is on a void invoice. What is uncollectible is owed, and collecting it no matter of billing. #}
in_stripe as (

    select
        readbacks.stripe_account,
        readbacks.entity,
        readbacks.stripe_object_id,
        readbacks.invoice_id,
        readbacks.line_id,
        coalesce(readbacks.invoice_status, 'none') = 'void' as is_void,
        readbacks.amount_minor,
        upper(readbacks.currency) as currency_code
    from readbacks
    inner join last_readbacks
        on readbacks.readback_id = last_readbacks.readback_id

),

items as (

    select * from in_stripe
    where entity = 'invoice_item'

),

items_by_line as (

    select
        stripe_account,
        line_id,
        currency_code,
        sum(case when is_void then 0 else 1 end) as item_count,
        sum(case when is_void then 1 else 0 end) as void_count,
        sum(case when is_void then 0 else amount_minor end) as amount_minor
    from items
    where line_id is not null
    group by stripe_account, line_id, currency_code

),

{# Confirmed after Stripe was read is not missing from what was read. #}
sent_lines as (

    select distinct
        sync_log.stripe_account,
        sync_log.entity_key as line_id
    from sync_log
    inner join last_readbacks
        on sync_log.stripe_account = last_readbacks.stripe_account
    where
        sync_log.entity = 'invoice_item'
        and sync_log.step = 'confirmed'
        and sync_log.logged_at <= last_readbacks.read_at

),

lines_in_stripe as (

    select
        last_readbacks.stripe_account,
        ledger_lines.line_id,
        ledger_lines.invoice_id,
        ledger_lines.currency_code,
        ledger_lines.amount_minor,
        sent_lines.line_id is not null or items_by_line.line_id is not null as is_sent,
        coalesce(items_by_line.item_count, 0) as item_count,
        coalesce(items_by_line.void_count, 0) as void_count,
        coalesce(items_by_line.amount_minor, 0) as stripe_amount_minor
    from last_readbacks
    cross join ledger_lines
    left join sent_lines
        on
            last_readbacks.stripe_account = sent_lines.stripe_account
            and ledger_lines.line_id = sent_lines.line_id
    left join items_by_line
        on
            last_readbacks.stripe_account = items_by_line.stripe_account
            and ledger_lines.line_id = items_by_line.line_id
            and ledger_lines.currency_code = items_by_line.currency_code

),

{# A line in another currency than the ledger's is no line of the ledger. #}
foreign_items as (

    select
        items.stripe_account,
        items.stripe_object_id,
        coalesce(items.invoice_id, 'none') as invoice_id,
        items.currency_code,
        items.amount_minor
    from items
    left join ledger_lines
        on
            items.line_id = ledger_lines.line_id
            and items.currency_code = ledger_lines.currency_code
    where
        ledger_lines.line_id is null
        and not items.is_void

),

discounts as (

    select * from in_stripe
    where
        entity = 'invoice_discount'
        and not is_void

),

findings as (

    select
        stripe_account,
        invoice_id,
        currency_code,
        line_id as subject,
        amount_minor as ledger_amount_minor,
        case when is_sent then 0 else amount_minor end as not_sent_amount_minor,
        case when is_sent then amount_minor else 0 end as sent_amount_minor,
        stripe_amount_minor,
        case
            when item_count = 0 and void_count > 0 then 'void'
            when is_sent and item_count = 0 then 'missing'
            when item_count > 1 then 'doubled'
            when item_count = 1 and stripe_amount_minor <> amount_minor then 'changed'
        end as finding
    from lines_in_stripe

    union all

    select
        stripe_account,
        invoice_id,
        currency_code,
        stripe_object_id as subject,
        0 as ledger_amount_minor,
        0 as not_sent_amount_minor,
        0 as sent_amount_minor,
        amount_minor as stripe_amount_minor,
        'foreign' as finding
    from foreign_items

    union all

    select
        stripe_account,
        invoice_id,
        currency_code,
        stripe_object_id as subject,
        0 as ledger_amount_minor,
        0 as not_sent_amount_minor,
        0 as sent_amount_minor,
        amount_minor as stripe_amount_minor,
        'discounted' as finding
    from discounts

),

by_invoice as (

    select
        stripe_account,
        invoice_id,
        currency_code,
        sum(ledger_amount_minor) as ledger_amount_minor,
        sum(not_sent_amount_minor) as not_sent_amount_minor,
        sum(sent_amount_minor) as sent_amount_minor,
        sum(stripe_amount_minor) as stripe_amount_minor,
        {# A missing line does not make up for a doubled one. #}
        sum(abs(stripe_amount_minor - sent_amount_minor)) as differing_amount_minor,
        sum(case when finding = 'missing' then 1 else 0 end) as missing_lines,
        sum(case when finding = 'void' then 1 else 0 end) as void_lines,
        sum(case when finding = 'doubled' then 1 else 0 end) as doubled_lines,
        sum(case when finding = 'changed' then 1 else 0 end) as changed_lines,
        sum(case when finding = 'foreign' then 1 else 0 end) as foreign_items,
        sum(case when finding = 'discounted' then 1 else 0 end) as discounted_invoices,
        {{ dbt.listagg("finding || ' ' || subject", "', '", 'order by finding, subject') }} as findings
    from findings
    group by stripe_account, invoice_id, currency_code

),

differences as (

    select
        by_invoice.stripe_account,
        by_invoice.invoice_id,
        by_invoice.currency_code,
        nullif(by_invoice.findings, '') as findings,
        last_readbacks.read_at,
        by_invoice.missing_lines,
        by_invoice.void_lines,
        by_invoice.doubled_lines,
        by_invoice.changed_lines,
        by_invoice.foreign_items,
        by_invoice.discounted_invoices,
        cast(by_invoice.ledger_amount_minor as bigint) as ledger_amount_minor,
        cast(by_invoice.not_sent_amount_minor as bigint) as not_sent_amount_minor,
        cast(by_invoice.sent_amount_minor as bigint) as sent_amount_minor,
        cast(by_invoice.stripe_amount_minor as bigint) as stripe_amount_minor,
        cast(by_invoice.stripe_amount_minor - by_invoice.sent_amount_minor as bigint) as difference_minor,
        coalesce({{ from_minor_units(
            'by_invoice.stripe_amount_minor - by_invoice.sent_amount_minor', 'currencies.minor_units'
        ) }}, 0) as difference_amount,
        coalesce({{ from_minor_units('by_invoice.differing_amount_minor', 'currencies.minor_units') }}, 0) as differing_amount,
        {# A difference from nothing is all of it. #}
        coalesce(
            {{ ratio('by_invoice.differing_amount_minor', 'abs(by_invoice.sent_amount_minor)') }},
            case when by_invoice.differing_amount_minor <> 0 then 1 else 0 end
        ) as difference_ratio
    from by_invoice
    inner join last_readbacks
        on by_invoice.stripe_account = last_readbacks.stripe_account
    left join currencies
        on by_invoice.currency_code = currencies.currency_code

)

select * from differences
