{{ config(
    meta={
        'rule': 'a usage or flat line is the sum of its tiers in quantity and amount, rounded by at most half a minor unit',
        'dagster': {'ref': {'name': 'fct_rated_lines'}}
    }
) }}
-- A returned row is a line whose quantity or amount its tiers do not explain.

-- A volume charge whose level falls back to nothing by the end of the service period is in no tier: its lines cancel out.

with

tiers_by_line as (

    select
        line_id,
        sum(quantity) as quantity,
        sum(unrounded_amount) as unrounded_amount
    from {{ ref('fct_rated_line_tiers') }}
    group by line_id

),

lines as (

    select
        *,
        charge_model in ('volume', 'stairstep')
        and sum(billable_quantity) over (
            partition by subscription_id, plan_code, charge_code, dimensions, service_period_start_at
        ) = 0 as cancels_out
    from {{ ref('fct_rated_lines') }}
    where line_type in ('usage', 'flat')

)

select
    lines.line_id,
    lines.billable_quantity,
    tiers_by_line.quantity as tier_quantity,
    lines.unrounded_amount,
    tiers_by_line.unrounded_amount as tier_amount,
    lines.gross_amount
from lines
inner join {{ ref('currencies') }} as currencies
    on lines.currency_code = currencies.currency_code
left join tiers_by_line
    on lines.line_id = tiers_by_line.line_id
where
    (lines.billable_quantity <> coalesce(tiers_by_line.quantity, 0) and not lines.cancels_out)
    or lines.unrounded_amount <> coalesce(tiers_by_line.unrounded_amount, 0)
    or round(abs(lines.gross_amount - lines.unrounded_amount) * 2 * power(10, currencies.minor_units), 9) > 1
