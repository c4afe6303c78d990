with

rated_tiers as (

    select * from {{ ref('int_rated_tiers') }}

),

rated_charges as (

    select * from {{ ref('int_rated_charges') }}

),

invoice_line_tiers as (

    select
        rated_tiers.line_id,
        {{ invoice_id('rated_charges.customer_id', 'rated_charges.billing_period', 'rated_charges.currency_code') }}
            as invoice_id,
        rated_tiers.tier_number,
        rated_tiers.above,
        rated_tiers.up_to,
        rated_tiers.quantity,
        rated_tiers.unit_amount,
        rated_tiers.flat_amount,
        rated_tiers.amount as unrounded_amount,
        rated_charges.currency_code
    from rated_tiers
    inner join rated_charges
        on rated_tiers.line_id = rated_charges.line_id

)

select * from invoice_line_tiers
