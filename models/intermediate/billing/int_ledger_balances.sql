{# A view, so that what a close has just appended counts at once. #}
{{ config(materialized='view') }}

with

ledger_entries as (

    select * from {{ source('ledger', 'billing_ledger') }}

),

balances as (

    select
        rated_line_id,
        currency_code,
        max(entry_number) as last_entry_number,
        {%- for measure in line_measures() %}
        sum({{ measure }}) as {{ measure }},
        {%- endfor %}
        count(*) as entry_count
    from ledger_entries
    group by rated_line_id, currency_code

),

ledger_balances as (

    select
        balances.rated_line_id,
        last_entries.original_billing_period,
        last_entries.customer_name,
        last_entries.run_id as last_run_id,
        {%- for attribute in line_attributes() %}
        last_entries.{{ attribute }},
        {%- endfor %}
        {%- for measure in line_measures() %}
        balances.{{ measure }},
        {%- endfor %}
        balances.last_entry_number
    from balances
    inner join ledger_entries as last_entries
        on
            balances.rated_line_id = last_entries.rated_line_id
            and balances.currency_code = last_entries.currency_code
            and balances.last_entry_number = last_entries.entry_number

)

select * from ledger_balances
