{# A view, so that reading Stripe back shows at once. #}
{{ config(materialized='view') }}

with

readbacks as (

    select * from {{ source('ops', 'stripe_meter_readback') }}

),

sync_log as (

    select * from {{ source('ops', 'stripe_sync_log') }}

),

ledger_lines as (

    select * from {{ source('ledger', 'billing_ledger') }}
    where line_type = 'usage'

),

routes as (

    select * from {{ ref('stripe_routes') }}
    where billing_route = 'meter_event'

),

meters as (

    select * from {{ ref('stripe_meters') }}

),

last_readbacks as (

    select
        stripe_account,
        event_name,
        customer_id,
        service_period_start_at,
        service_period_end_at,
        max_by(readback_id, read_at) as readback_id,
        max(read_at) as read_at
    from readbacks
    group by stripe_account, event_name, customer_id, service_period_start_at, service_period_end_at

),

{# Of a name there is one active meter, and any number that were deactivated. #}
periods as (

    select
        readbacks.stripe_account,
        readbacks.event_name,
        readbacks.customer_id,
        readbacks.service_period_start_at,
        readbacks.service_period_end_at,
        readbacks.read_at,
        max(readbacks.stripe_customer_id) as stripe_customer_id,
        sum(readbacks.units) as stripe_units
    from readbacks
    inner join last_readbacks
        on
            readbacks.readback_id = last_readbacks.readback_id
            and readbacks.event_name = last_readbacks.event_name
            and readbacks.customer_id = last_readbacks.customer_id
            and readbacks.service_period_start_at = last_readbacks.service_period_start_at
            and readbacks.service_period_end_at = last_readbacks.service_period_end_at
    group by
        readbacks.stripe_account,
        readbacks.event_name,
        readbacks.customer_id,
        readbacks.service_period_start_at,
        readbacks.service_period_end_at,
        readbacks.read_at

),

tries as (

    select
        stripe_account,
        entity_key as line_id,
        max(currency) as event_name,
        max(customer_id) as customer_id,
        max(amount_minor) as units,
        min(case when step = 'intent' then logged_at end) as first_intent_at,
        max(case when step = 'confirmed' then logged_at end) as confirmed_at,
        sum(case when step = 'intent' then 1 else 0 end) as intents,
        sum(case when step = 'failed' and http_status < 500 then 1 else 0 end) as refusals,
        {# Without a status it was not the answer to a request: Stripe turned out not to have the event. #}
        sum(case when step = 'failed' and http_status is null then 1 else 0 end) as undone
    from sync_log
    where entity = 'meter_event'
    group by stripe_account, entity_key, idempotency_key

),

events as (

    select
        tries.stripe_account,
        tries.line_id,
        tries.event_name,
        tries.customer_id,
        tries.units,
        tries.first_intent_at,
        tries.confirmed_at,
        {{ stripe_event_minute(
            'ledger_lines.rated_line_id', 'ledger_lines.service_period_start_at', 'ledger_lines.service_period_end_at'
        ) }} as event_at
    from tries
    inner join ledger_lines
        on tries.line_id = ledger_lines.line_id
    where
        tries.undone = 0
        and (tries.confirmed_at is not null or tries.intents > tries.refusals)

),

{# Two customers of ours can be one in Stripe. #}
customers_in_stripe as (

    select distinct
        stripe_account,
        customer_id,
        stripe_customer_id
    from periods
    where stripe_customer_id is not null

),

{# By the minute and not by the line's own period: service periods of a customer's subscriptions may overlap. #}
events_in_periods as (

    select
        periods.stripe_account,
        periods.event_name,
        periods.customer_id,
        periods.service_period_start_at,
        periods.service_period_end_at,
        events.units,
        {# Stripe's sums may lack what arrived within the hour before they were read. #}
        coalesce({{ dbt.dateadd('hour', 1, 'events.confirmed_at') }} <= periods.read_at, false) as is_settled
    from periods
    inner join customers_in_stripe
        on
            periods.stripe_account = customers_in_stripe.stripe_account
            and periods.stripe_customer_id = customers_in_stripe.stripe_customer_id
    inner join events
        on
            customers_in_stripe.stripe_account = events.stripe_account
            and customers_in_stripe.customer_id = events.customer_id
            and periods.event_name = events.event_name
            and periods.service_period_start_at <= events.event_at
            and periods.service_period_end_at > events.event_at
    where events.first_intent_at <= periods.read_at

),

sent_units as (

    select
        stripe_account,
        event_name,
        customer_id,
        service_period_start_at,
        service_period_end_at,
        sum(case when is_settled then units else 0 end) as sent_units,
        sum(case when is_settled then 0 else units end) as unsettled_units,
        sum(case when is_settled or units < 0 then 0 else units end) as unsettled_additions,
        sum(case when is_settled or units > 0 then 0 else units end) as unsettled_corrections
    from events_in_periods
    group by stripe_account, event_name, customer_id, service_period_start_at, service_period_end_at

),

lines_by_way as (

    select
        stripe_account,
        entity_key as line_id,
        max(case when entity = 'invoice_item' and step = 'confirmed' then 1 else 0 end) as is_item
    from sync_log
    group by stripe_account, entity_key

),

event_by_line as (

    select
        stripe_account,
        line_id,
        max(event_name) as event_name,
        max(units) as units
    from events
    group by stripe_account, line_id

),

accounts as (

    select distinct stripe_account from periods

),

{# On the route now, or gone as an event while it was. #}
metered_lines as (

    select
        accounts.stripe_account,
        ledger_lines.customer_id,
        ledger_lines.service_period_start_at,
        ledger_lines.service_period_end_at,
        coalesce(event_by_line.event_name, meters.event_name) as event_name,
        {# Three decimals of the factor and nine of the quantity are what Snowflake keeps of a product. #}
        coalesce(
            cast(event_by_line.units as decimal(38, 12)),
            cast(ledger_lines.metered_quantity * meters.units_per_quantity as decimal(38, 12))
        ) as units,
        event_by_line.line_id is not null as is_event,
        coalesce(lines_by_way.is_item, 0) = 1 as is_item
    from accounts
    cross join ledger_lines
    left join routes
        on ledger_lines.subscription_id = routes.subscription_id
    left join meters
        on ledger_lines.charge_code = meters.charge_code
    left join event_by_line
        on
            accounts.stripe_account = event_by_line.stripe_account
            and ledger_lines.line_id = event_by_line.line_id
    left join lines_by_way
        on
            accounts.stripe_account = lines_by_way.stripe_account
            and ledger_lines.line_id = lines_by_way.line_id
    where routes.subscription_id is not null or event_by_line.line_id is not null

),

ledger_units as (

    select
        stripe_account,
        event_name,
        customer_id,
        service_period_start_at,
        service_period_end_at,
        sum(units) as ledger_units,
        sum(case when is_item and not is_event then units else 0 end) as item_units,
        sum(case when is_item or is_event then 0 else units end) as not_sent_units
    from metered_lines
    group by stripe_account, event_name, customer_id, service_period_start_at, service_period_end_at

),

compared as (

    select
        periods.stripe_account,
        periods.event_name,
        periods.customer_id,
        periods.service_period_start_at,
        periods.service_period_end_at,
        periods.stripe_customer_id,
        periods.read_at,
        cast(periods.stripe_units as decimal(38, 12)) as stripe_units,
        cast(coalesce(ledger_units.ledger_units, 0) as decimal(38, 12)) as ledger_units,
        cast(coalesce(ledger_units.item_units, 0) as decimal(38, 12)) as item_units,
        cast(coalesce(ledger_units.not_sent_units, 0) as decimal(38, 12)) as not_sent_units,
        cast(coalesce(sent_units.sent_units, 0) as decimal(38, 12)) as sent_units,
        cast(coalesce(sent_units.unsettled_units, 0) as decimal(38, 12)) as unsettled_units,
        {# The least and the most that Stripe may have. #}
        cast(coalesce(sent_units.sent_units + sent_units.unsettled_corrections, 0) as decimal(38, 12)) as least_units,
        cast(coalesce(sent_units.sent_units + sent_units.unsettled_additions, 0) as decimal(38, 12)) as most_units
    from periods
    left join sent_units
        on
            periods.stripe_account = sent_units.stripe_account
            and periods.event_name = sent_units.event_name
            and periods.customer_id = sent_units.customer_id
            and periods.service_period_start_at = sent_units.service_period_start_at
            and periods.service_period_end_at = sent_units.service_period_end_at
    left join ledger_units
        on
            periods.stripe_account = ledger_units.stripe_account
            and periods.event_name = ledger_units.event_name
            and periods.customer_id = ledger_units.customer_id
            and periods.service_period_start_at = ledger_units.service_period_start_at
            and periods.service_period_end_at = ledger_units.service_period_end_at

),

{# What is not settled may be in Stripe's sum or not: only what no part of it explains is a difference. #}
measured as (

    select
        compared.*,
        case
            when
                compared.stripe_units < compared.least_units
                then cast(compared.stripe_units - compared.least_units as decimal(38, 12))
            when
                compared.stripe_units > compared.most_units
                then cast(compared.stripe_units - compared.most_units as decimal(38, 12))
            else cast(0 as decimal(38, 12))
        end as difference_units
    from compared

),

{# A surplus of as much as an event, or as all of them, has come twice. #}
surplus_of_an_event as (

    select distinct
        measured.stripe_account,
        measured.event_name,
        measured.customer_id,
        measured.service_period_start_at,
        measured.service_period_end_at
    from measured
    inner join events_in_periods
        on
            measured.stripe_account = events_in_periods.stripe_account
            and measured.event_name = events_in_periods.event_name
            and measured.customer_id = events_in_periods.customer_id
            and measured.service_period_start_at = events_in_periods.service_period_start_at
            and measured.service_period_end_at = events_in_periods.service_period_end_at
    where
        measured.difference_units = events_in_periods.units
        or measured.difference_units = measured.most_units

),

differences as (

    select
        measured.stripe_account,
        measured.event_name,
        measured.customer_id,
        measured.service_period_start_at,
        measured.service_period_end_at,
        measured.stripe_customer_id,
        case
            when measured.difference_units < 0 then 'missing'
            when measured.difference_units > 0 and surplus_of_an_event.stripe_account is not null then 'doubled'
            when measured.difference_units > 0 then 'foreign'
            when measured.least_units <> measured.most_units then 'not_settled'
            else 'equal'
        end as finding,
        measured.ledger_units,
        measured.item_units,
        measured.not_sent_units,
        measured.sent_units,
        measured.unsettled_units,
        measured.stripe_units,
        measured.difference_units,
        {# A difference from nothing is all of it. #}
        coalesce(
            {{ ratio('abs(measured.difference_units)', 'abs(measured.most_units)') }},
            case when measured.difference_units <> 0 then 1 else 0 end
        ) as difference_ratio,
        measured.read_at
    from measured
    left join surplus_of_an_event
        on
            measured.stripe_account = surplus_of_an_event.stripe_account
            and measured.event_name = surplus_of_an_event.event_name
            and measured.customer_id = surplus_of_an_event.customer_id
            and measured.service_period_start_at = surplus_of_an_event.service_period_start_at
            and measured.service_period_end_at = surplus_of_an_event.service_period_end_at

)

select * from differences
