with

billable_quantities as (

    select * from {{ ref('int_billable_quantities') }}

),

tiers as (

    select * from {{ ref('int_charge_tiers_bounded') }}

),

billable_quantities_joined_to_tiers as (

    select
        billable.slice_id,
        billable.line_id,
        billable.charge_model in ('volume', 'stairstep') as is_volume,
        billable.zero_usage = 'first_tier_flat' as is_flat_without_usage,
        billable.is_first_slice or billable.has_whole_quantity as bears_flat_without_usage,
        billable.fee_amount,
        billable.billable_before,
        billable.billable_through,
        billable.share_before,
        billable.share_through,
        billable.share_whole,
        tiers.tier_number,
        tiers.above,
        tiers.up_to,
        tiers.package_size,
        tiers.unit_amount,
        tiers.flat_amount,
        (
            billable.period_billable > tiers.above
            or (billable.zero_usage = 'first_tier_flat' and billable.period_billable = 0 and tiers.tier_number = 1)
        )
        and billable.period_billable <= coalesce(tiers.up_to, billable.period_billable) as holds_period_quantity
    from billable_quantities as billable
    inner join tiers
        on billable.tier_set_id = tiers.tier_set_id

),

{# How far each bound has climbed inside the tier. Volume climbs, in one tier, by the whole quantity. #}
tiers_climbed as (

    select
        *,
        {%- for bound in ['before', 'through'] %}
        case
            when is_volume then case when holds_period_quantity then billable_{{ bound }} else 0 end
            else least(greatest(billable_{{ bound }}, above), coalesce(up_to, greatest(billable_{{ bound }}, above))) - above
        end as climbed_{{ bound }},
        case
            when is_volume then holds_period_quantity and billable_{{ bound }} > 0
            else billable_{{ bound }} > above
        end as is_entered_{{ bound }},
        {%- endfor %}
        case
            when is_flat_without_usage and is_volume then holds_period_quantity
            when is_flat_without_usage then tier_number = 1
            else false
        end as is_due_without_usage
    from billable_quantities_joined_to_tiers

),

tier_quantities as (

    select
        *,
        cast(climbed_through - climbed_before as {{ quantity_total_type() }}) as quantity,
        cast(
            case
                when package_size is null then climbed_through - climbed_before
                else
                    {{ divide_ceiling('climbed_through', 'package_size') }}
                    - {{ divide_ceiling('climbed_before', 'package_size') }}
            end as {{ quantity_total_type() }}
        ) as priced_quantity,
        {# A flat amount is due once, when the quantity enters the tier; it is taken back when a level falls below it again. #}
        case
            when is_due_without_usage then case when bears_flat_without_usage then 1 else 0 end
            else case when is_entered_through then 1 else 0 end - case when is_entered_before then 1 else 0 end
        end as times_entered
    from tiers_climbed

),

tier_amounts as (

    select
        *,
        cast(
            coalesce(fee_amount, {{ multiply_amount('priced_quantity', 'unit_amount') }} + times_entered * flat_amount)
            as {{ amount_type() }}
        ) as whole_amount
    from tier_quantities

),

rated_tiers as (

    select
        slice_id,
        line_id,
        tier_number,
        above,
        up_to,
        quantity,
        package_size,
        priced_quantity,
        unit_amount,
        {# For a percentage charge: what fixed, smallest and largest fees of single events add to the rate. #}
        cast(
            case
                when fee_amount is not null then fee_amount - {{ multiply_amount('priced_quantity', 'unit_amount') }}
                else times_entered * flat_amount
            end as {{ amount_type() }}
        ) as flat_amount,
        cast(
            case
                when share_before = 0 and share_through = share_whole then whole_amount
                else
                    {{ prorate_amount('whole_amount', 'share_through', 'share_whole') }}
                    - {{ prorate_amount('whole_amount', 'share_before', 'share_whole') }}
            end as {{ amount_type() }}
        ) as amount
    from tier_amounts
    where quantity <> 0 or times_entered <> 0 or fee_amount <> 0

)

select * from rated_tiers
