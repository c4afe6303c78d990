with

subscriptions as (

    select * from {{ ref('stg_subscriptions') }}

),

numbers as (

    select * from {{ ref('int_numbers') }}

),

{# Months are counted on the wall clock and only then turned into instants, so that each begins at local midnight. #}
calendar_months as (

    select
        subscriptions.*,
        {{ dbt.dateadd('month', 'numbers.number', dbt.date_trunc('month', 'subscriptions.started_local_at')) }}
            as month_start_local_at,
        {{ dbt.dateadd('month', 'numbers.number + 1', dbt.date_trunc('month', 'subscriptions.started_local_at')) }}
            as month_end_local_at
    from subscriptions
    inner join numbers
        on
            numbers.number
            <= {{ dbt.datediff('subscriptions.started_local_at', as_of(), 'month') }} + 1  -- noqa: LT05

),

calendar_months_in_utc as (

    select
        *,
        {{ local_to_utc('month_start_local_at', 'time_zone') }} as month_start_at,
        {{ local_to_utc('month_end_local_at', 'time_zone') }} as month_end_at
    from calendar_months

),

service_periods as (

    select
        subscription_id,
        customer_id,
        plan_code,
        time_zone,
        {{ local_month_label('month_start_local_at') }} as billing_period,
        greatest(month_start_at, started_at) as service_period_start_at,
        least(month_end_at, coalesce(ended_at, month_end_at)) as service_period_end_at
    from calendar_months_in_utc

),

service_periods_not_empty as (

    select * from service_periods
    where service_period_start_at < service_period_end_at

)

select * from service_periods_not_empty
