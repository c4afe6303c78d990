with

parts as (

    select * from {{ ref('int_service_period_parts') }}

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

plan_charges as (

    select * from {{ ref('int_plan_charges') }}

),

entitlements as (

    select
        *,
        row_number() over (order by charge_code, coalesce(customer_id, ''), valid_from) as entitlement_number
    from {{ ref('entitlements') }}

),

entitlements_in_parts as (

    select
        parts.service_period_id,
        parts.part_start_at,
        plan_charges.charge_code,
        entitlements.entitlement_number as version_id,
        entitlements.customer_id is not null as is_own,
        entitlements.valid_from as valid_from_at,
        greatest(parts.part_start_at, {{ local_to_utc('entitlements.valid_from', 'parts.time_zone') }}) as from_at,
        least(
            parts.part_end_at,
            coalesce({{ local_to_utc('entitlements.valid_to', 'parts.time_zone') }}, parts.part_end_at)
        ) as to_at
    from parts
    inner join plan_charges
        on
            parts.subscription_id = plan_charges.subscription_id
            and parts.plan_code = plan_charges.plan_code
    inner join entitlements
        on
            plan_charges.charge_code = entitlements.charge_code
            and (entitlements.customer_id is null or parts.customer_id = entitlements.customer_id)

),

candidates as (

    select * from entitlements_in_parts
    where from_at < to_at

),

{{ versions_in_force('candidates', ['service_period_id', 'part_start_at', 'charge_code']) }},

entitlements_in_force as (

    select
        versions.service_period_id,
        versions.charge_code,
        entitlements.included_quantity,
        entitlements.proration,
        entitlements.rollover_limit,
        service_periods.full_days,
        {{ local_days('versions.from_at', 'versions.to_at', 'service_periods.time_zone') }} as days_in_force,  -- noqa: LT05
        versions.from_at = service_periods.service_period_start_at as holds_at_start
    from versions_in_force as versions
    inner join entitlements
        on versions.version_id = entitlements.entitlement_number
    inner join service_periods
        on versions.service_period_id = service_periods.service_period_id

),

included_quantities as (

    select
        service_period_id,
        charge_code,
        {{ divide_quantity(
            "sum(case when proration = 'by_day' then included_quantity * days_in_force
                when holds_at_start then included_quantity * full_days else 0 end)",
            'max(full_days)'
        ) }} as included_quantity,
        max(case when holds_at_start then rollover_limit end) as rollover_limit
    from entitlements_in_force
    group by service_period_id, charge_code

)

select * from included_quantities
