with

billable_quantities as (

    select * from {{ ref('int_billable_quantities') }}

),

tiers as (

    select * from {{ ref('int_charge_tiers_bounded') }}

),

billable_quantities_joined_to_tiers as (

    select
        billable.line_id,
        billable.charge_model,
        billable.billable_before,
        billable.billable_through,
        billable.service_period_billable,
        tiers.tier_number,
        tiers.above,
        tiers.up_to,
        tiers.unit_amount,
        tiers.flat_amount
    from billable_quantities as billable
    inner join tiers
        on
            billable.charge_code = tiers.charge_code
            and billable.price_version = tiers.price_version

),

{# Graduated: the part of (before, through] that lies in (above, up_to]; one unbounded tier makes it per unit or per package.
   Volume: the whole quantity, in the tier that holds the total of the service period. #}
tier_quantities as (

    select
        *,
        cast(
            case
                when charge_model <> 'volume'
                    then greatest(
                        least(billable_through, coalesce(up_to, billable_through)) - greatest(billable_before, above),
                        0
                    )
                when service_period_billable > above and service_period_billable <= coalesce(up_to, service_period_billable)
                    then billable_through - billable_before
                else 0
            end as {{ quantity_total_type() }}
        ) as quantity,
        {# A flat amount is due in the segment in which the quantity enters the tier. #}
        case
            when charge_model <> 'volume' then billable_through > above and billable_before <= above
            else
                service_period_billable > above
                and service_period_billable <= coalesce(up_to, service_period_billable)
                and billable_before = 0
                and billable_through > 0
        end as is_entered
    from billable_quantities_joined_to_tiers

),

rated_tiers as (

    select
        line_id,
        tier_number,
        above,
        up_to,
        quantity,
        unit_amount,
        cast(case when is_entered then flat_amount else 0 end as decimal(22, 12)) as flat_amount,
        cast(
            {{ multiply_amount('quantity', 'unit_amount') }}
            + case when is_entered then flat_amount else 0 end
            as {{ amount_type() }}
        ) as amount
    from tier_quantities
    where quantity > 0 or is_entered

)

select * from rated_tiers
