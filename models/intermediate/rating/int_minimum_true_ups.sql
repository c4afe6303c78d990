with

limited_charges as (

    select * from {{ ref('int_limited_charges') }}

),

limits as (

    select * from {{ ref('int_charge_limits') }}
    where minimum_minor > 0

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

charges as (

    select
        charge_code,
        max(metric_code) as metric_code,
        max(charge_name) as charge_name
    from {{ ref('charges') }}
    group by charge_code

),

amounts_by_charge as (

    select
        service_period_id,
        charge_code,
        sum(amount_minor) as amount_minor
    from limited_charges
    group by service_period_id, charge_code

),

minimum_true_ups as (

    select
        {{ surrogate_key(['limits.service_period_id', 'limits.charge_code', "'minimum'"]) }} as line_id,
        limits.service_period_id,
        limits.charge_code,
        charges.metric_code,
        charges.charge_name,
        cast(limits.minimum_minor - coalesce(amounts_by_charge.amount_minor, 0) as bigint) as amount_minor
    from limits
    inner join service_periods
        on limits.service_period_id = service_periods.service_period_id
    inner join charges
        on limits.charge_code = charges.charge_code
    left join amounts_by_charge
        on
            limits.service_period_id = amounts_by_charge.service_period_id
            and limits.charge_code = amounts_by_charge.charge_code
    where limits.minimum_minor > coalesce(amounts_by_charge.amount_minor, 0)

)

select * from minimum_true_ups
