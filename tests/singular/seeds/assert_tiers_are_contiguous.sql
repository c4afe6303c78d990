{{ config(
    meta={
        'rule': 'tiers are numbered from 1 without gaps, up_to rises, only the last tier has none, per_unit and package have one tier',
        'dagster': {'ref': {'name': 'charge_tiers'}}
    }
) }}
-- A returned row is a tier that breaks the ladder of its price version.

with

tiers as (

    select
        charge_tiers.*,
        charges.charge_model,
        row_number() over price_version as expected_tier_number,
        lag(charge_tiers.up_to, 1, 0) over price_version as previous_up_to,
        lead(charge_tiers.tier_number) over price_version as next_tier_number
    from {{ ref('charge_tiers') }} as charge_tiers
    left join {{ ref('charges') }} as charges
        on
            charge_tiers.charge_code = charges.charge_code
            and charge_tiers.price_version = charges.price_version
    window price_version as (
        partition by charge_tiers.charge_code, charge_tiers.price_version
        order by charge_tiers.tier_number
    )

)

select
    'seeds/pricing/charge_tiers.csv' as seed_file,
    charge_code,
    price_version,
    charge_model,
    tier_number,
    previous_up_to,
    up_to
from tiers
where
    tier_number <> expected_tier_number
    or (next_tier_number is null and up_to is not null)
    or (next_tier_number is not null and up_to is null)
    or coalesce(up_to <= previous_up_to, false)
    or (charge_model in ('per_unit', 'package') and tier_number > 1)
