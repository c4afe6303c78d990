{# What earlier service periods left unused of an entitlement, and its rollover limit let through. #}
with recursive

included_quantities as (

    select * from {{ ref('int_included_quantities') }}

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

plan_charges as (

    select * from {{ ref('int_plan_charges') }}

),

usage_by_service_period as (

    select * from {{ ref('int_usage_by_service_period') }}

),

charges_with_rollover as (

    select distinct
        service_periods.subscription_id,
        service_periods.plan_code,
        included_quantities.charge_code,
        plan_charges.metric_code
    from included_quantities
    inner join service_periods
        on included_quantities.service_period_id = service_periods.service_period_id
    inner join plan_charges
        on
            service_periods.subscription_id = plan_charges.subscription_id
            and service_periods.plan_code = plan_charges.plan_code
            and included_quantities.charge_code = plan_charges.charge_code
    where included_quantities.rollover_limit is not null

),

usage_groups as (

    select distinct
        charges_with_rollover.subscription_id,
        charges_with_rollover.plan_code,
        charges_with_rollover.charge_code,
        charges_with_rollover.metric_code,
        usage_by_service_period.dimensions
    from charges_with_rollover
    inner join usage_by_service_period
        on
            charges_with_rollover.subscription_id = usage_by_service_period.subscription_id
            and charges_with_rollover.plan_code = usage_by_service_period.plan_code
            and charges_with_rollover.metric_code = usage_by_service_period.metric_code

),

quantities as (

    select
        usage_groups.subscription_id,
        usage_groups.plan_code,
        usage_groups.charge_code,
        usage_groups.dimensions,
        service_periods.service_period_id,
        service_periods.service_period_number,
        coalesce(included_quantities.included_quantity, 0) as included_quantity,
        coalesce(included_quantities.rollover_limit, 0) as rollover_limit,
        coalesce(usage_by_service_period.billable_units, 0) as billable_units
    from usage_groups
    inner join service_periods
        on
            usage_groups.subscription_id = service_periods.subscription_id
            and usage_groups.plan_code = service_periods.plan_code
    left join included_quantities
        on
            service_periods.service_period_id = included_quantities.service_period_id
            and usage_groups.charge_code = included_quantities.charge_code
    left join usage_by_service_period
        on
            service_periods.service_period_id = usage_by_service_period.service_period_id
            and usage_groups.metric_code = usage_by_service_period.metric_code
            and usage_groups.dimensions = usage_by_service_period.dimensions

),

rolled_over (
    subscription_id,
    plan_code,
    charge_code,
    dimensions,
    service_period_id,
    service_period_number,
    rolled_over_quantity,
    left_quantity
) as (

    select
        subscription_id,
        plan_code,
        charge_code,
        dimensions,
        service_period_id,
        service_period_number,
        cast(0 as {{ quantity_total_type() }}) as rolled_over_quantity,
        cast(
            least(rollover_limit, greatest(included_quantity - billable_units, 0)) as {{ quantity_total_type() }}
        ) as left_quantity
    from quantities
    where service_period_number = 1

    union all

    select
        quantities.subscription_id,
        quantities.plan_code,
        quantities.charge_code,
        quantities.dimensions,
        quantities.service_period_id,
        quantities.service_period_number,
        rolled_over.left_quantity as rolled_over_quantity,
        cast(
            least(
                quantities.rollover_limit,
                greatest(quantities.included_quantity + rolled_over.left_quantity - quantities.billable_units, 0)
            ) as {{ quantity_total_type() }}
        ) as left_quantity
    from rolled_over
    inner join quantities
        on
            rolled_over.subscription_id = quantities.subscription_id
            and rolled_over.plan_code = quantities.plan_code
            and rolled_over.charge_code = quantities.charge_code
            and rolled_over.dimensions = quantities.dimensions
            and rolled_over.service_period_number + 1 = quantities.service_period_number

)

select
    service_period_id,
    charge_code,
    dimensions,
    rolled_over_quantity
from rolled_over
where rolled_over_quantity > 0
