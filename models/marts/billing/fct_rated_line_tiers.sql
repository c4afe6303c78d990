with

rated_tiers as (

    select * from {{ ref('int_rated_tiers') }}

),

slices as (

    select * from {{ ref('int_billable_quantities') }}

),

rated_lines as (

    select * from {{ ref('fct_rated_lines') }}

),

{%- set quantities = ['quantity', 'priced_quantity', 'flat_amount'] %}

tiers_by_line as (

    select
        rated_tiers.line_id,
        rated_tiers.tier_number,
        rated_tiers.above,
        rated_tiers.up_to,
        rated_tiers.package_size,
        rated_tiers.unit_amount,
        {%- for quantity in quantities %}
        {# Every slice of a gauge or a recurring fee has the whole quantity. #}
        case
            when max(case when slices.has_whole_quantity then 1 else 0 end) = 1 then max(rated_tiers.{{ quantity }})
            else sum(rated_tiers.{{ quantity }})
        end as {{ quantity }},
        {%- endfor %}
        sum(rated_tiers.amount) as amount
    from rated_tiers
    inner join slices
        on rated_tiers.slice_id = slices.slice_id
    group by
        rated_tiers.line_id,
        rated_tiers.tier_number,
        rated_tiers.above,
        rated_tiers.up_to,
        rated_tiers.package_size,
        rated_tiers.unit_amount

),

rated_line_tiers as (

    select
        tiers_by_line.line_id,
        tiers_by_line.tier_number,
        tiers_by_line.above,
        tiers_by_line.up_to,
        cast(tiers_by_line.quantity as {{ quantity_total_type() }}) as quantity,
        tiers_by_line.package_size,
        cast(tiers_by_line.priced_quantity as {{ quantity_total_type() }}) as priced_quantity,
        tiers_by_line.unit_amount,
        cast(tiers_by_line.flat_amount as {{ amount_type() }}) as flat_amount,
        cast(tiers_by_line.amount as {{ amount_type() }}) as unrounded_amount,
        rated_lines.currency_code
    from tiers_by_line
    inner join rated_lines
        on tiers_by_line.line_id = rated_lines.line_id

)

select * from rated_line_tiers
