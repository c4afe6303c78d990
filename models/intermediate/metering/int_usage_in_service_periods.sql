{{ config(materialized='view') }}

with

usage_hourly as (

    select * from {{ ref('int_usage_hourly') }}
    where event_count > 0

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

numbers as (

    select * from {{ ref('int_numbers') }}

),

{# Joining on the UTC month first keeps the join from pairing each window with every period of a long subscription. #}
service_periods_by_month as (

    select
        service_periods.*,
        {{ dbt.dateadd('month', 'numbers.number', dbt.date_trunc('month', 'service_periods.service_period_start_at')) }}
            as utc_month
    from service_periods
    inner join numbers
        on
            numbers.number
            <= {{ dbt.datediff('service_periods.service_period_start_at', 'service_periods.service_period_end_at', 'month') }}

),

usage_in_service_periods as (

    select
        usage_hourly.*,
        service_periods_by_month.subscription_id,
        service_periods_by_month.plan_code,
        service_periods_by_month.time_zone,
        service_periods_by_month.billing_period,
        service_periods_by_month.service_period_start_at,
        service_periods_by_month.service_period_end_at
    from usage_hourly
    inner join service_periods_by_month
        on
            usage_hourly.customer_id = service_periods_by_month.customer_id
            and {{ dbt.date_trunc('month', 'usage_hourly.window_start_at') }} = service_periods_by_month.utc_month
            and usage_hourly.window_start_at >= service_periods_by_month.service_period_start_at
            and usage_hourly.window_start_at < service_periods_by_month.service_period_end_at

)

select * from usage_in_service_periods
