with

billable_quantities as (

    select * from {{ ref('int_billable_quantities') }}

),

rated_tiers as (

    select * from {{ ref('int_rated_tiers') }}

),

plans as (

    select * from {{ ref('plans') }}

),

currencies as (

    select * from {{ ref('currencies') }}

),

amounts_by_line as (

    select
        line_id,
        cast(sum(amount) as {{ amount_type() }}) as unrounded_amount
    from rated_tiers
    group by line_id

),

rated_charges as (

    select
        billable_quantities.*,
        billable_quantities.billable_through - billable_quantities.billable_before as billable_quantity,
        plans.currency_code,
        currencies.minor_units,
        coalesce(amounts_by_line.unrounded_amount, 0) as unrounded_amount
    from billable_quantities
    inner join plans
        on billable_quantities.plan_code = plans.plan_code
    inner join currencies
        on plans.currency_code = currencies.currency_code
    left join amounts_by_line
        on billable_quantities.line_id = amounts_by_line.line_id

),

{# The one place where money is rounded. #}
rated_charges_rounded as (

    select
        *,
        {{ round_to_minor_units('unrounded_amount', 'minor_units') }} as amount
    from rated_charges

)

select * from rated_charges_rounded
