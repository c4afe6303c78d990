with

parts as (

    select * from {{ ref('int_service_period_parts') }}

),

service_periods as (

    select
        service_period_id,
        subscription_id,
        customer_id,
        plan_code,
        time_zone,
        full_days,
        cast(sum(part_days) as integer) as active_days,
        full_period_start_at,
        full_period_end_at,
        min(part_start_at) as service_period_start_at,
        max(part_end_at) as service_period_end_at,
        max(part_end_at) = max(last_part_end_at) as ends_full_period
    from parts
    group by
        service_period_id,
        subscription_id,
        customer_id,
        plan_code,
        time_zone,
        full_days,
        full_period_start_at,
        full_period_end_at

),

service_periods_numbered as (

    select
        *,
        row_number() over (partition by subscription_id, plan_code order by service_period_start_at) as service_period_number,
        {# A line is billed by the run of the month that ends when it falls due. #}
        {{ local_month_label(local_clock_before('service_period_end_at', 'time_zone')) }} as billing_period,
        {{ local_month_label(local_clock_before('service_period_start_at', 'time_zone')) }} as advance_billing_period
    from service_periods

)

select * from service_periods_numbered
