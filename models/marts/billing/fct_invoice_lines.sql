{# A view, so that a close shows at once. Lines of the ledger, lines that the next closes will append as far as known now, and
   the adjustments that are ready, on the customer's next invoice. #}
{{ config(materialized='view') }}

with

ledger_entries as (

    select * from {{ source('ledger', 'billing_ledger') }}

),

ledger_balances as (

    select * from {{ ref('int_ledger_balances') }}

),

drafts as (

    select * from {{ ref('int_line_differences') }}
    where entry_kind = 'original'

),

adjustments as (

    select * from {{ ref('int_pending_adjustments') }}
    where adjustment_status = 'ready'

),

last_closed_periods as (

    select
        customer_id,
        max(billing_period) as billing_period
    from {{ source('ledger', 'closed_periods') }}
    group by customer_id

),

{%- set common_columns = [
    'line_id', 'rated_line_id', 'entry_number', 'entry_kind', 'corrects_run_id', 'customer_name', 'tiers'
] %}
{%- set common_columns = common_columns + line_attributes() + line_measures() %}

closed_lines as (

    select
        {%- for column in common_columns if column != 'description' %}
        ledger_entries.{{ column }},
        {%- endfor %}
        ledger_entries.description,
        ledger_entries.run_id,
        ledger_entries.invoice_id,
        ledger_entries.billing_period,
        ledger_entries.original_billing_period,
        case
            when ledger_entries.entry_number < ledger_balances.last_entry_number then 'adjusted'
            else 'closed'
        end as line_state
    from ledger_entries
    inner join ledger_balances
        on
            ledger_entries.rated_line_id = ledger_balances.rated_line_id
            and ledger_entries.currency_code = ledger_balances.currency_code

),

draft_lines as (

    select
        {%- for column in common_columns if column != 'description' %}
        {{ column }},
        {%- endfor %}
        description,
        cast(null as varchar) as run_id,
        {{ invoice_id('customer_id', 'original_billing_period', 'currency_code') }} as invoice_id,
        original_billing_period as billing_period,
        original_billing_period,
        'draft' as line_state
    from drafts

),

adjustments_in_next_periods as (

    select
        adjustments.*,
        {{ local_month_label(dbt.dateadd('month', 1, "cast(last_closed_periods.billing_period || '-01' as date)")) }}
            as billing_period
    from adjustments
    inner join last_closed_periods
        on adjustments.customer_id = last_closed_periods.customer_id

),

adjustment_lines as (

    select
        {%- for column in common_columns if column != 'description' %}
        {{ column }},
        {%- endfor %}
        'Adjustment of ' || original_billing_period || ': ' || description as description,
        cast(null as varchar) as run_id,
        {{ invoice_id('customer_id', 'billing_period', 'currency_code') }} as invoice_id,
        billing_period,
        original_billing_period,
        'draft' as line_state
    from adjustments_in_next_periods

),

all_lines as (

    select * from closed_lines

    union all

    select * from draft_lines

    union all

    select * from adjustment_lines

),

invoice_lines as (

    select
        ---------- ids
        line_id,
        invoice_id,
        run_id,
        rated_line_id,
        corrects_run_id,
        subscription_id,
        customer_id,
        plan_code,
        charge_code,
        metric_code,
        commitment_code,
        credit_grant_code,
        paid_line_id,

        ---------- strings
        customer_name,
        line_type,
        line_state,
        entry_kind,
        description,
        charge_model,
        dimensions,
        discount_codes,
        time_zone,
        billing_period,
        original_billing_period,
        currency_code,
        tiers,

        ---------- numerics
        cast(entry_number as integer) as entry_number,
        price_version,
        cast(metered_quantity as {{ quantity_total_type() }}) as metered_quantity,
        cast(included_quantity_used as {{ quantity_total_type() }}) as included_quantity_used,
        cast(billable_quantity as {{ quantity_total_type() }}) as billable_quantity,
        cast(unrounded_amount as {{ amount_type() }}) as unrounded_amount,
        cast(gross_amount as {{ money_type() }}) as gross_amount,
        cast(discount_amount as {{ money_type() }}) as discount_amount,
        cast(maximum_reduction_amount as {{ money_type() }}) as maximum_reduction_amount,
        cast(amount as {{ money_type() }}) as amount,
        cast(amount_minor as bigint) as amount_minor,
        cast(event_count as bigint) as event_count,
        cast(event_keys_hash as {{ event_keys_hash_type() }}) as event_keys_hash,

        ---------- timestamps
        first_event_at,
        last_event_at,
        service_period_start_at,
        service_period_end_at,
        price_start_at,
        price_end_at,
        credit_grant_start_at,
        due_at
    from all_lines

)

select * from invoice_lines
