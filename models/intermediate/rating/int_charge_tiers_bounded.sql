with

tiers as (

    select * from {{ ref('charge_tiers') }}

),

tiers_bounded as (

    select
        charge_code,
        price_version,
        tier_number,
        lag(up_to, 1, 0) over (
            partition by charge_code, price_version
            order by tier_number
        ) as above,
        up_to,
        unit_amount,
        flat_amount
    from tiers

)

select * from tiers_bounded
