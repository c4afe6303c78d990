{{ config(
    meta={
        'rule': 'a dimension value stands only where metric_dimensions.csv has a pricing dimension of the metric at that position; flat charges have none',
        'dagster': {'ref': {'name': 'charge_tiers'}}
    }
) }}
-- A returned row is a tier for a value of a dimension that usage is not split by: no group would ever fit it.

with

dimension_values as (

    {% for position in [1, 2, 3] %}
    select
        charge_code,
        price_version,
        tier_number,
        {{ position }} as dimension_position,
        dimension_{{ position }}_value as dimension_value
    from {{ ref('charge_tiers') }}
    where dimension_{{ position }}_value is not null
    {% if not loop.last %}
    union all

    {% endif %}
    {%- endfor %}

),

pricing_dimensions as (

    select * from {{ ref('metric_dimensions') }}
    where purpose = 'pricing'

)

select
    'seeds/pricing/charge_tiers.csv' as seed_file,
    dimension_values.charge_code,
    dimension_values.price_version,
    dimension_values.tier_number,
    dimension_values.dimension_position,
    dimension_values.dimension_value,
    charges.charge_model,
    charges.metric_code
from dimension_values
inner join {{ ref('charges') }} as charges
    on
        dimension_values.charge_code = charges.charge_code
        and dimension_values.price_version = charges.price_version
left join pricing_dimensions
    on
        charges.metric_code = pricing_dimensions.metric_code
        and dimension_values.dimension_position = pricing_dimensions.dimension_position
where pricing_dimensions.metric_code is null
