{{ config(
    meta={
        'rule': 'a matrix charge has at least one tier with a dimension value',
        'dagster': {'ref': {'name': 'charge_tiers'}}
    }
) }}
-- A returned row is a price version of a matrix that is the same for all dimension values.

select
    'seeds/pricing/charge_tiers.csv' as seed_file,
    charges.charge_code,
    charges.price_version,
    charges.charge_model,
    count(charge_tiers.tier_number) as tiers
from {{ ref('charges') }} as charges
inner join {{ ref('charge_tiers') }} as charge_tiers
    on
        charges.charge_code = charge_tiers.charge_code
        and charges.price_version = charge_tiers.price_version
where charges.charge_model = 'matrix'
group by charges.charge_code, charges.price_version, charges.charge_model
having
    count(charge_tiers.dimension_1_value) = 0
    and count(charge_tiers.dimension_2_value) = 0
    and count(charge_tiers.dimension_3_value) = 0
