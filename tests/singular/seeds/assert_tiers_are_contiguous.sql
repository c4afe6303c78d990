{{ config(
    meta={
        'rule': 'tiers of a price version and the same dimension values are numbered from 1 without gaps, up_to is above 0 and rises, only the last tier has none',
        'dagster': {'ref': {'name': 'charge_tiers'}}
    }
) }}
-- A returned row is a tier that breaks the ladder it belongs to.

{% set ladder -%}
    partition by charge_code, price_version, dimension_1_value, dimension_2_value, dimension_3_value
    order by tier_number
{%- endset %}

with

tiers as (

    select
        *,
        row_number() over ({{ ladder }}) as expected_tier_number,
        lag(up_to, 1, 0) over ({{ ladder }}) as previous_up_to,
        lead(tier_number) over ({{ ladder }}) as next_tier_number
    from {{ ref('charge_tiers') }}

)

select
    'seeds/pricing/charge_tiers.csv' as seed_file,
    charge_code,
    price_version,
    dimension_1_value,
    dimension_2_value,
    dimension_3_value,
    tier_number,
    previous_up_to,
    up_to
from tiers
where
    tier_number <> expected_tier_number
    or (next_tier_number is null and up_to is not null)
    or (next_tier_number is not null and up_to is null)
    or coalesce(up_to <= previous_up_to, false)
