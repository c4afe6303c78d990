{# Percentage discounts one after the other on the unrounded amount, which is then rounded once; fixed discounts are shared out in
   whole minor units, so that the lines add up to the cent. #}
with

rated_charges as (

    select * from {{ ref('int_rated_charges') }}

),

discounts as (

    select * from {{ ref('discounts') }}

),

discounts_of_lines as (

    select
        rated_charges.line_id,
        rated_charges.service_period_id,
        discounts.discount_code,
        discounts.discount_type,
        discounts.percentage,
        discounts.amount,
        row_number() over (
            partition by rated_charges.line_id, discounts.discount_type
            order by discounts.discount_code
        ) as discount_rank
    from rated_charges
    inner join discounts
        on
            (discounts.customer_id is null or rated_charges.customer_id = discounts.customer_id)
            and (discounts.plan_code is null or rated_charges.plan_code = discounts.plan_code)
            and (discounts.charge_code is null or rated_charges.charge_code = discounts.charge_code)
            and (discounts.currency_code is null or rated_charges.currency_code = discounts.currency_code)
            and rated_charges.service_period_start_at >= {{ local_to_utc('discounts.valid_from', 'rated_charges.time_zone') }}
            and (
                discounts.valid_to is null
                or rated_charges.service_period_start_at < {{ local_to_utc('discounts.valid_to', 'rated_charges.time_zone') }}
            )

),

percentages_by_line as (

    select
        {%- for rank in range(1, 6) %}
        max(case when discount_type = 'percentage' and discount_rank = {{ rank }} then percentage end) as percentage_{{ rank }},
        {%- endfor %}
        {{ dbt.listagg('discount_code', "', '", 'order by discount_type desc, discount_code asc') }} as discount_codes,
        line_id
    from discounts_of_lines
    group by line_id

),

fixed_discounts_by_service_period as (

    select
        service_period_id,
        cast(sum(amount) as {{ amount_type() }}) as fixed_amount
    from (
        select distinct
            service_period_id,
            discount_code,
            amount
        from discounts_of_lines
        where discount_type = 'fixed'
    ) as fixed_discounts
    group by service_period_id

),

lines_with_percentages as (

    select
        rated_charges.line_id,
        rated_charges.service_period_id,
        rated_charges.customer_id,
        rated_charges.currency_code,
        rated_charges.minor_units,
        rated_charges.charge_code,
        rated_charges.dimensions,
        rated_charges.segment_start_at,
        rated_charges.unrounded_amount,
        {%- for rank in range(1, 6) %}
        percentages_by_line.percentage_{{ rank }},
        {%- endfor %}
        percentages_by_line.discount_codes
    from rated_charges
    left join percentages_by_line
        on rated_charges.line_id = percentages_by_line.line_id

),

{% for rank in range(1, 6) %}
lines_after_percentage_{{ rank }} as (

    select
        lines.*,
        {% set amount = 'lines.unrounded_amount' if rank == 1 else 'lines.net_amount_' ~ (rank - 1) -%}
        case
            when lines.percentage_{{ rank }} is null then {{ amount }}
            else {{ reduce_by_fraction(amount, 'lines.percentage_' ~ rank) }}
        end as net_amount_{{ rank }}
    from {{ 'lines_with_percentages' if rank == 1 else 'lines_after_percentage_' ~ (rank - 1) }} as lines

),
{% endfor %}
lines_rounded as (

    select
        *,
        {{ round_to_minor_units('net_amount_5', 'minor_units') }} as net_amount
    from lines_after_percentage_5

),

lines_in_minor_units as (

    select
        *,
        {{ in_minor_units('net_amount', 'minor_units') }} as amount_minor
    from lines_rounded

),

fixed_discounts_rounded as (

    select
        lines.line_id,
        lines.service_period_id,
        lines.minor_units,
        greatest(lines.amount_minor, 0) as amount_minor,
        sum(greatest(lines.amount_minor, 0)) over (partition by lines.service_period_id) as total_minor,
        {{ round_to_minor_units('fixed_discounts.fixed_amount', 'lines.minor_units') }} as fixed_amount
    from lines_in_minor_units as lines
    inner join fixed_discounts_by_service_period as fixed_discounts
        on lines.service_period_id = fixed_discounts.service_period_id

),

lines_to_share as (

    select
        line_id,
        service_period_id,
        amount_minor,
        total_minor,
        least({{ in_minor_units('fixed_amount', 'minor_units') }}, total_minor) as fixed_minor
    from fixed_discounts_rounded
    where total_minor > 0

),

shares as (

    select
        line_id,
        service_period_id,
        fixed_minor,
        {{ share_of_minor_units('amount_minor', 'fixed_minor', 'total_minor', 'floor') }} as share_minor,
        {{ share_of_minor_units('amount_minor', 'fixed_minor', 'total_minor', 'remainder') }} as share_remainder
    from lines_to_share

),

shares_ranked as (

    select
        line_id,
        share_minor,
        row_number() over (partition by service_period_id order by share_remainder desc, line_id asc) as remainder_rank,
        fixed_minor - sum(share_minor) over (partition by service_period_id) as left_over_minor
    from shares

),

discounted_charges as (

    select
        lines.service_period_id,
        lines.customer_id,
        lines.currency_code,
        lines.charge_code,
        lines.dimensions,
        lines.segment_start_at,
        lines.discount_codes,
        lines.line_id,
        cast(
            lines.amount_minor
            - coalesce(shares_ranked.share_minor, 0)
            - case when shares_ranked.remainder_rank <= shares_ranked.left_over_minor then 1 else 0 end as bigint
        ) as discounted_minor
    from lines_in_minor_units as lines
    left join shares_ranked
        on lines.line_id = shares_ranked.line_id

)

select * from discounted_charges
