{# A price that changes inside a service period is applied to what the quantity grows by while it holds, so the quantity is
   needed at the bounds of each slice and at the end. #}
with

slices as (

    select * from {{ ref('int_rating_slices') }}
    where metric_code is not null

),

plan_charges as (

    select * from {{ ref('int_plan_charges') }}
    where metric_code is not null

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

cuts as (

    select
        service_period_id,
        metric_code,
        slice_end_at as cut_at
    from slices

    union

    select
        service_period_id,
        metric_code,
        slice_start_at as cut_at
    from slices

    union

    select
        service_periods.service_period_id,
        plan_charges.metric_code,
        service_periods.service_period_end_at as cut_at
    from service_periods
    inner join plan_charges
        on
            service_periods.subscription_id = plan_charges.subscription_id
            and service_periods.plan_code = plan_charges.plan_code

),

{{ quantities_at_cuts('cuts', ['dimensions']) }}

select * from quantities_at_cuts
