with

phases as (

    select
        subscription_phases.*,
        {{ months_in_interval('subscribed_plans.billing_interval') }} as months_in_period
    from {{ ref('stg_subscriptions') }} as subscription_phases
    inner join {{ ref('plans') }} as subscribed_plans
        on subscription_phases.plan_code = subscribed_plans.plan_code

),

numbers as (

    select * from {{ ref('int_numbers') }}

),

{# Without an anchor, periods start with the calendar's months, quarters and years: all of them count from a New Year. #}
anchors as (

    select
        subscription_id,
        months_in_period,
        coalesce(anchor_date, cast({{ dbt.date_trunc('year', 'min(started_local_at)') }} as date)) as anchor_date,
        min(started_local_at) as first_started_local_at
    from phases
    group by
        subscription_id,
        months_in_period,
        anchor_date

),

subscriptions as (

    select
        *,
        {{ dbt.datediff('anchor_date', 'first_started_local_at', 'month') }} as months_from_anchor,  -- noqa: LT05
        {{ dbt.datediff('first_started_local_at', as_of(), 'month') }} as months_until_now  -- noqa: LT05
    from anchors

),

{# Each start is counted from the anchor itself: an anchor on the 31st is the 28th in February and the 31st again in March. #}
period_numbers as (

    select
        subscriptions.*,
        numbers.number + cast(
            floor(subscriptions.months_from_anchor * 1.0 / subscriptions.months_in_period) as integer
        ) - 1 as period_number
    from subscriptions
    inner join numbers
        on
            numbers.number * subscriptions.months_in_period
            <= subscriptions.months_until_now + 4 * subscriptions.months_in_period

),

full_periods as (

    select
        subscription_id,
        months_in_period,
        cast({{ dbt.dateadd('month', 'period_number * months_in_period', 'anchor_date') }} as datetime)
            as full_period_start_local_at,
        cast({{ dbt.dateadd('month', '(period_number + 1) * months_in_period', 'anchor_date') }} as datetime)
            as full_period_end_local_at
    from period_numbers

),

phases_in_full_periods as (

    select
        phases.subscription_id,
        phases.customer_id,
        phases.plan_code,
        phases.time_zone,
        {{ dbt.datediff('full_periods.full_period_start_local_at', 'full_periods.full_period_end_local_at', 'day') }}
            as full_days,
        {{ local_to_utc('full_periods.full_period_start_local_at', 'phases.time_zone') }} as full_period_start_at,
        {{ local_to_utc('full_periods.full_period_end_local_at', 'phases.time_zone') }} as full_period_end_at,
        {{ local_to_utc(
            'greatest(full_periods.full_period_start_local_at, phases.started_local_at)', 'phases.time_zone'
        ) }} as part_start_at,
        {{ local_to_utc(
            'least(full_periods.full_period_end_local_at, '
            ~ 'coalesce(phases.ended_local_at, full_periods.full_period_end_local_at))',
            'phases.time_zone'
        ) }} as part_end_at
    from phases
    inner join full_periods
        on
            phases.subscription_id = full_periods.subscription_id
            and phases.months_in_period = full_periods.months_in_period
            and phases.started_local_at < full_periods.full_period_end_local_at
            and coalesce(phases.ended_local_at, full_periods.full_period_end_local_at) > full_periods.full_period_start_local_at

),

parts as (

    select
        {{ surrogate_key(['subscription_id', 'plan_code', timestamp_text('full_period_start_at')]) }} as service_period_id,
        *,
        min(part_start_at) over (partition by subscription_id, plan_code, full_period_start_at) as first_part_start_at,
        max(part_end_at) over (partition by subscription_id, full_period_start_at, full_period_end_at) as last_part_end_at
    from phases_in_full_periods
    where part_start_at < part_end_at

),

parts_of_periods_that_have_started as (

    select
        service_period_id,
        subscription_id,
        customer_id,
        plan_code,
        time_zone,
        full_days,
        {{ local_days('part_start_at', 'part_end_at', 'time_zone') }} as part_days,  -- noqa: LT05
        full_period_start_at,
        full_period_end_at,
        part_start_at,
        part_end_at,
        last_part_end_at
    from parts
    where first_part_start_at <= {{ as_of() }}

)

select * from parts_of_periods_that_have_started
