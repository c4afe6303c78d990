{# When which metrics of a customer have a plan that charges for them. By UTC month too, so that a join need not pair each window
   with every period of a long subscription. #}
with

parts as (

    select * from {{ ref('int_service_period_parts') }}

),

plan_charges as (

    select * from {{ ref('int_plan_charges') }}

),

numbers as (

    select * from {{ ref('int_numbers') }}

),

plan_metrics as (

    select distinct
        subscription_id,
        plan_code,
        metric_code
    from plan_charges
    where metric_code is not null

),

charged_time as (

    select
        parts.service_period_id,
        parts.customer_id,
        plan_metrics.metric_code,
        parts.part_start_at,
        parts.part_end_at,
        {{ dbt.dateadd('month', 'numbers.number', dbt.date_trunc('month', 'parts.part_start_at')) }} as utc_month
    from parts
    inner join plan_metrics
        on
            parts.subscription_id = plan_metrics.subscription_id
            and parts.plan_code = plan_metrics.plan_code
    inner join numbers
        on numbers.number <= {{ dbt.datediff('parts.part_start_at', 'parts.part_end_at', 'month') }}

)

select * from charged_time
