{# A view, so that a run of metering whatif shows at once. #}
{{ config(materialized='view') }}

with

what_if_lines as (

    select * from {{ source('ops', 'what_if_lines') }}

),

latest_runs as (

    select
        scenario_name,
        max_by(what_if_id, recorded_at) as what_if_id
    from what_if_lines
    group by scenario_name

),

what_if as (

    select
        ---------- ids
        what_if_lines.scenario_name,
        what_if_lines.customer_id,
        what_if_lines.item_code,
        what_if_lines.price_book_hash,

        ---------- strings
        what_if_lines.customer_name,
        what_if_lines.line_type,
        what_if_lines.billing_period,
        what_if_lines.currency_code,
        case
            when what_if_lines.amount_minor_now is null then 'new'
            when what_if_lines.amount_minor_then is null then 'gone'
            when
                what_if_lines.amount_minor_now <> what_if_lines.amount_minor_then
                or what_if_lines.quantity_now <> what_if_lines.quantity_then
                then 'changed'
            else 'unchanged'
        end as change_type,

        ---------- numerics
        what_if_lines.quantity_now,
        what_if_lines.quantity_then,
        what_if_lines.amount_now,
        what_if_lines.amount_then,
        cast(
            coalesce(what_if_lines.amount_then, 0) - coalesce(what_if_lines.amount_now, 0) as {{ money_type() }}
        ) as difference_amount,
        coalesce(what_if_lines.amount_minor_then, 0) - coalesce(what_if_lines.amount_minor_now, 0)
            as difference_amount_minor,
        {{ ratio(
            'what_if_lines.amount_minor_then - what_if_lines.amount_minor_now', 'abs(what_if_lines.amount_minor_now)'
        ) }} as relative_difference,

        ---------- timestamps
        what_if_lines.as_of,
        what_if_lines.recorded_at
    from what_if_lines
    inner join latest_runs
        on what_if_lines.what_if_id = latest_runs.what_if_id

)

select * from what_if
