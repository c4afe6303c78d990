{# Which tiers price a combination of dimension values. One that no row of the price book fits has none: it is unbilled. #}
with

usage_by_service_period as (

    select * from {{ ref('int_usage_by_service_period') }}

),

definitions as (

    select * from {{ ref('int_metric_definitions') }}

),

charges as (

    select * from {{ ref('charges') }}

),

tier_sets as (

    select distinct
        charge_code,
        price_version,
        tier_set_id,
        dimension_1_value,
        dimension_2_value,
        dimension_3_value
    from {{ ref('int_charge_tiers_bounded') }}

),

dimensions_in_use as (

    select distinct
        metric_code,
        dimensions
    from usage_by_service_period

),

dimension_values as (

    select
        {%- for position in [1, 2, 3] %}
        {{ json_text('dimensions_in_use.dimensions', json_path('definitions.dimension_' ~ position ~ '_property')) }}
            as dimension_{{ position }}_value,
        {%- endfor %}
        dimensions_in_use.metric_code,
        dimensions_in_use.dimensions
    from dimensions_in_use
    inner join definitions
        on dimensions_in_use.metric_code = definitions.metric_code

),

tier_sets_that_fit as (

    select
        tier_sets.charge_code,
        tier_sets.price_version,
        dimension_values.dimensions,
        tier_sets.tier_set_id,
        row_number() over (
            partition by tier_sets.charge_code, tier_sets.price_version, dimension_values.dimensions
            order by
                case when tier_sets.dimension_1_value is null then 1 else 0 end,
                case when tier_sets.dimension_2_value is null then 1 else 0 end,
                case when tier_sets.dimension_3_value is null then 1 else 0 end
        ) as precedence
    from charges
    inner join dimension_values
        on charges.metric_code = dimension_values.metric_code
    inner join tier_sets
        on
            charges.charge_code = tier_sets.charge_code
            and charges.price_version = tier_sets.price_version
            and (tier_sets.dimension_1_value is null or dimension_values.dimension_1_value = tier_sets.dimension_1_value)
            and (tier_sets.dimension_2_value is null or dimension_values.dimension_2_value = tier_sets.dimension_2_value)
            and (tier_sets.dimension_3_value is null or dimension_values.dimension_3_value = tier_sets.dimension_3_value)

),

tier_sets_in_force as (

    select
        charge_code,
        price_version,
        dimensions,
        tier_set_id
    from tier_sets_that_fit
    where precedence = 1

)

select * from tier_sets_in_force
