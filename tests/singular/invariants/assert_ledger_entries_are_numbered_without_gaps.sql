{{ config(
    meta={
        'rule': 'closed is closed: the entries of a line are numbered 1, 2, 3 without a gap, and a run has as many lines as it says',
        'dagster': {'ref': {'name': 'fct_invoice_lines'}}
    }
) }}
-- A returned row is a line or a run of which entries are missing from the ledger.

select
    rated_line_id as line_or_run,
    count(*) as entries,
    max(entry_number) as expected_entries
from {{ source('ledger', 'billing_ledger') }}
group by rated_line_id, currency_code
having count(*) <> max(entry_number)

union all

select
    runs.run_id as line_or_run,
    count(entries.line_id) as entries,
    max(runs.line_count) as expected_entries
from {{ source('ledger', 'billing_runs') }} as runs
left join {{ source('ledger', 'billing_ledger') }} as entries
    on runs.run_id = entries.run_id
group by runs.run_id
having count(entries.line_id) <> max(runs.line_count)
