{{ config(
    meta={
        'rule': 'credits pay no line below zero and use no grant beyond its amount',
        'dagster': {'ref': {'name': 'fct_rated_lines'}}
    }
) }}
-- A returned row is a line that is paid more than its amount, or an instance of a grant that pays more than it holds.

with

credits as (

    select * from {{ ref('fct_rated_lines') }}
    where line_type = 'credit'

)

select
    'line' as exceeded,
    lines.line_id as exceeded_id,
    max(lines.amount) as available_amount,
    -sum(credits.amount) as paid_amount
from credits
left join {{ ref('fct_rated_lines') }} as lines
    on credits.paid_line_id = lines.line_id
group by lines.line_id
having -sum(credits.amount) > coalesce(max(lines.amount), 0)

union all

select
    'grant' as exceeded,
    credit_grants.grant_code || ' from ' || {{ timestamp_text('credits.credit_grant_start_at') }} as exceeded_id,
    max(credit_grants.amount) as available_amount,
    -sum(credits.amount) as paid_amount
from credits
inner join {{ ref('credit_grants') }} as credit_grants
    on credits.credit_grant_code = credit_grants.grant_code
group by credit_grants.grant_code, credits.credit_grant_start_at
having -sum(credits.amount) > max(credit_grants.amount)
