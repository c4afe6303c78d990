with

tiers as (

    select * from {{ ref('charge_tiers') }}

),

tiers_bounded as (

    select
        charge_code,
        price_version,
        {{ surrogate_key([
            'charge_code', 'price_version', 'dimension_1_value', 'dimension_2_value', 'dimension_3_value'
        ]) }} as tier_set_id,
        dimension_1_value,
        dimension_2_value,
        dimension_3_value,
        tier_number,
        lag(up_to, 1, 0) over (
            partition by charge_code, price_version, dimension_1_value, dimension_2_value, dimension_3_value
            order by tier_number
        ) as above,
        up_to,
        package_size,
        {# The seed holds more decimals than a price may have, so that a test sees them; loading would round them in silence. #}
        cast(unit_amount as {{ price_type() }}) as unit_amount,
        cast(flat_amount as {{ price_type() }}) as flat_amount
    from tiers

)

select * from tiers_bounded
