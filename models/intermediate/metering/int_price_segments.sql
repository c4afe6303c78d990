with

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

charges as (

    select * from {{ ref('charges') }}

),

prices_in_service_periods as (

    select
        service_periods.*,
        charges.charge_code,
        charges.price_version,
        charges.metric_code,
        greatest(
            service_periods.service_period_start_at,
            {{ local_to_utc('charges.valid_from', 'service_periods.time_zone') }}
        ) as segment_start_at,
        least(
            service_periods.service_period_end_at,
            coalesce(
                {{ local_to_utc('charges.valid_to', 'service_periods.time_zone') }},
                service_periods.service_period_end_at
            )
        ) as segment_end_at
    from service_periods
    inner join charges
        on service_periods.plan_code = charges.plan_code

),

price_segments as (

    select * from prices_in_service_periods
    where segment_start_at < segment_end_at

)

select * from price_segments
