{# The lines of a charge, in order of time, up to the maximum of the service period. #}
with

discounted_charges as (

    select * from {{ ref('int_discounted_charges') }}

),

limits as (

    select * from {{ ref('int_charge_limits') }}

),

running_totals as (

    select
        discounted_charges.*,
        limits.maximum_minor,
        sum(discounted_charges.discounted_minor) over (
            partition by discounted_charges.service_period_id, discounted_charges.charge_code
            order by discounted_charges.segment_start_at, discounted_charges.dimensions
            rows between unbounded preceding and current row
        ) as running_minor
    from discounted_charges
    left join limits
        on
            discounted_charges.service_period_id = limits.service_period_id
            and discounted_charges.charge_code = limits.charge_code

),

limited_charges as (

    select
        *,
        cast(
            case
                when maximum_minor is null then discounted_minor
                else
                    least(running_minor, maximum_minor) - least(running_minor - discounted_minor, maximum_minor)
            end as bigint
        ) as amount_minor
    from running_totals

)

select * from limited_charges
