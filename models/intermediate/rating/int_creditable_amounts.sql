{# What credits may pay, in the order of time: slices of lines, and true-ups at the end of their service period. #}
with

customers_with_grants as (

    select distinct
        customer_id,
        currency_code
    from {{ ref('int_credit_grants') }}

),

limited_charges as (

    select lines.*
    from {{ ref('int_limited_charges') }} as lines
    inner join customers_with_grants as credit_grants
        on
            lines.customer_id = credit_grants.customer_id
            and lines.currency_code = credit_grants.currency_code

),

billable_quantities as (

    select * from {{ ref('int_billable_quantities') }}

),

rated_tiers as (

    select * from {{ ref('int_rated_tiers') }}

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

plans as (

    select * from {{ ref('plans') }}

),

minimum_true_ups as (

    select * from {{ ref('int_minimum_true_ups') }}

),

commitment_true_ups as (

    select * from {{ ref('int_commitment_true_ups') }}

),

slices as (

    select
        billable_quantities.line_id,
        billable_quantities.slice_start_at,
        billable_quantities.due_at,
        sum(coalesce(rated_tiers.amount, 0)) as amount
    from billable_quantities
    inner join limited_charges
        on billable_quantities.line_id = limited_charges.line_id
    left join rated_tiers
        on billable_quantities.slice_id = rated_tiers.slice_id
    group by
        billable_quantities.line_id,
        billable_quantities.slice_start_at,
        billable_quantities.due_at

),

running_amounts as (

    select
        *,
        sum(amount) over (
            partition by line_id
            order by slice_start_at
            rows between unbounded preceding and current row
        ) as running_amount
    from slices

),

{# Where a line falls again, only what is left of it at its end can be paid. #}
rising_amounts as (

    select
        line_id,
        slice_start_at,
        due_at,
        cast(
            round(
                greatest(
                    min(running_amount) over (
                        partition by line_id
                        order by slice_start_at
                        rows between current row and unbounded following
                    ),
                    0
                ),
                9
            ) as {{ quantity_total_type() }}
        ) as running_amount
    from running_amounts

),

rising_nanos as (

    select
        line_id,
        slice_start_at,
        due_at,
        cast(running_amount * 1000000000 as decimal(38, 0)) as running_nanos
    from rising_amounts

),

slice_weights as (

    select
        line_id,
        slice_start_at,
        due_at,
        running_nanos,
        lag(running_nanos, 1, 0) over (partition by line_id order by slice_start_at) as nanos_before,
        max(running_nanos) over (partition by line_id) as line_nanos
    from rising_nanos

),

slice_amounts as (

    select
        limited_charges.line_id,
        limited_charges.customer_id,
        limited_charges.currency_code,
        limited_charges.charge_code,
        slice_weights.slice_start_at as counts_at,
        slice_weights.due_at,
        case
            when slice_weights.line_nanos = 0 then 0
            else
                {{ share_of_minor_units(
                    'greatest(limited_charges.amount_minor, 0)', 'slice_weights.running_nanos', 'slice_weights.line_nanos', 'half_up'
                ) }}
                - {{ share_of_minor_units(
                    'greatest(limited_charges.amount_minor, 0)', 'slice_weights.nanos_before', 'slice_weights.line_nanos', 'half_up'
                ) }}
        end as amount_minor
    from slice_weights
    inner join limited_charges
        on slice_weights.line_id = limited_charges.line_id

),

true_ups as (

    select
        line_id,
        service_period_id,
        charge_code,
        amount_minor
    from minimum_true_ups

    union all

    select
        line_id,
        service_period_id,
        cast(null as varchar) as charge_code,
        amount_minor
    from commitment_true_ups

),

creditable_amounts as (

    select * from slice_amounts

    union all

    select
        true_ups.line_id,
        service_periods.customer_id,
        plans.currency_code,
        true_ups.charge_code,
        {{ instant_before('service_periods.service_period_end_at') }} as counts_at,
        service_periods.service_period_end_at as due_at,
        true_ups.amount_minor
    from true_ups
    inner join service_periods
        on true_ups.service_period_id = service_periods.service_period_id
    inner join plans
        on service_periods.plan_code = plans.plan_code

),

creditable_amounts_above_zero as (

    select
        {{ surrogate_key(['line_id', timestamp_text('counts_at')]) }} as creditable_amount_id,
        line_id,
        customer_id,
        currency_code,
        charge_code,
        counts_at,
        due_at,
        cast(amount_minor as bigint) as amount_minor
    from creditable_amounts
    where amount_minor > 0

)

select * from creditable_amounts_above_zero
