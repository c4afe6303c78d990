with

shadow_billing as (

    select * from {{ ref('stg_shadow_billing') }}

),

price_segments as (

    select * from {{ ref('int_price_segments') }}

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

covered_periods as (

    select distinct billing_period from shadow_billing

),

charges_in_service_periods as (

    select
        service_period_id,
        charge_code,
        max(metric_code) as metric_code,
        max(charge_model) as charge_model,
        max(billing_timing) as billing_timing,
        min(segment_start_at) as window_start_at,
        max(segment_end_at) as window_end_at
    from price_segments
    group by service_period_id, charge_code

),

windows as (

    select
        charges.service_period_id,
        service_periods.customer_id,
        service_periods.plan_code,
        charges.charge_code,
        charges.metric_code,
        charges.charge_model,
        service_periods.time_zone,
        case
            when charges.billing_timing = 'in_advance' then service_periods.advance_billing_period
            else service_periods.billing_period
        end as billing_period,
        service_periods.full_period_start_at,
        service_periods.full_period_end_at,
        charges.window_start_at,
        charges.window_end_at
    from charges_in_service_periods as charges
    inner join service_periods
        on charges.service_period_id = service_periods.service_period_id

),

windows_in_covered_periods as (

    select windows.*
    from windows
    inner join covered_periods
        on windows.billing_period = covered_periods.billing_period

)

select * from windows_in_covered_periods
