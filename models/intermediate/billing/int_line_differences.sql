{# What the ledger lacks: lines of periods that are not closed yet, and what has changed of those that are. A view, so that it is
   right as soon as a close has appended its lines. #}
{{ config(materialized='view') }}

with

rated_lines as (

    select * from {{ ref('fct_rated_lines') }}

),

rated_tiers as (

    select * from {{ ref('fct_rated_line_tiers') }}

),

ledger_balances as (

    select * from {{ ref('int_ledger_balances') }}

),

closed_periods as (

    select * from {{ source('ledger', 'closed_periods') }}

),

customers as (

    select * from {{ ref('stg_customers') }}

),

{# A period is closed once; were it twice, lines must not double. #}
closing_runs as (

    select
        customer_id,
        billing_period,
        min(run_id) as run_id
    from closed_periods
    group by customer_id, billing_period

),

{% set tier_columns = [
    'tier_number', 'above', 'up_to', 'quantity', 'package_size', 'priced_quantity', 'unit_amount', 'flat_amount', 'unrounded_amount'
] %}
tiers_by_line as (

    select
        line_id,
        {% set texts = [] %}
        {% for column in tier_columns %}
        {% do texts.append("'\"" ~ column ~ "\":' || coalesce('\"' || cast(" ~ column ~ " as varchar) || '\"', 'null')") %}
        {% endfor %}
        '[' || {{ dbt.listagg(
            "'{' || " ~ texts | join(" || ',' || ") ~ " || '}'", "','", 'order by tier_number'
        ) }} || ']' as tiers
    from rated_tiers
    group by line_id

),

lines_beside_the_ledger as (

    select
        coalesce(rated_lines.line_id, ledger_balances.rated_line_id) as rated_line_id,
        ledger_balances.last_run_id,
        coalesce(ledger_balances.last_entry_number, 0) + 1 as entry_number,
        ledger_balances.rated_line_id is not null as is_in_ledger,
        ledger_balances.customer_name as ledger_customer_name,
        {# A line that is rated no more keeps what it was called. #}
        {%- for attribute in line_attributes() %}
        case
            when rated_lines.line_id is not null then rated_lines.{{ attribute }}
            else ledger_balances.{{ attribute }}
        end as {{ attribute }},
        {%- endfor %}
        {%- for measure in line_measures() %}
        coalesce(rated_lines.{{ measure }}, 0) as rated_{{ measure }},
        coalesce(ledger_balances.{{ measure }}, 0) as ledger_{{ measure }},
        {%- endfor %}
        coalesce(rated_lines.billing_period, ledger_balances.original_billing_period) as original_billing_period
    from rated_lines
    full outer join ledger_balances
        on
            rated_lines.line_id = ledger_balances.rated_line_id
            and rated_lines.currency_code = ledger_balances.currency_code

),

line_differences as (

    select
        {{ line_entry_id('lines.rated_line_id', 'lines.currency_code', 'lines.entry_number') }} as line_id,
        lines.rated_line_id,
        lines.entry_number,
        case
            when lines.is_in_ledger or closing_runs.run_id is not null then 'adjustment'
            else 'original'
        end as entry_kind,
        coalesce(lines.last_run_id, closing_runs.run_id) as corrects_run_id,
        lines.original_billing_period,
        coalesce(customers.customer_name, lines.ledger_customer_name) as customer_name,
        {%- for attribute in line_attributes() %}
        lines.{{ attribute }},
        {%- endfor %}
        {%- for measure in line_measures() %}
        lines.rated_{{ measure }} - lines.ledger_{{ measure }} as {{ measure }},
        {%- endfor %}
        lines.rated_amount_minor,
        lines.ledger_amount_minor,
        coalesce(tiers_by_line.tiers, '[]') as tiers
    from lines_beside_the_ledger as lines
    left join closing_runs
        on
            lines.customer_id = closing_runs.customer_id
            and lines.original_billing_period = closing_runs.billing_period
    left join customers
        on lines.customer_id = customers.customer_id
    left join tiers_by_line
        on lines.rated_line_id = tiers_by_line.line_id

)

select * from line_differences
where
    entry_kind = 'original'
    {%- for measure in line_measures() %}
    or {{ measure }} <> 0
    {%- endfor %}
