{# A committed spend beside what was spent, on the last service period that counts towards it. #}
with

commitments as (

    select * from {{ ref('commitments') }}

),

parts as (

    select * from {{ ref('int_service_period_parts') }}

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

phases as (

    select * from {{ ref('stg_subscriptions') }}

),

currencies as (

    select * from {{ ref('currencies') }}

),

lines as (

    select
        service_period_id,
        amount_minor
    from {{ ref('int_limited_charges') }}

    union all

    select
        service_period_id,
        amount_minor
    from {{ ref('int_minimum_true_ups') }}

),

amounts_by_service_period as (

    select
        service_period_id,
        sum(amount_minor) as amount_minor
    from lines
    group by service_period_id

),

subscriptions as (

    select
        subscription_id,
        max(time_zone) as time_zone,
        case when count(ended_at) = count(*) then max(ended_at) end as ended_at
    from phases
    group by subscription_id

),

commitments_in_utc as (

    select
        commitments.*,
        subscriptions.time_zone,
        currencies.minor_units,
        {{ local_to_utc('commitments.valid_from', 'subscriptions.time_zone') }} as from_at,
        {{ local_to_utc('commitments.valid_to', 'subscriptions.time_zone') }} as to_at,
        least(
            coalesce(subscriptions.ended_at, cast('9999-12-31' as datetime)),
            coalesce({{ local_to_utc('commitments.valid_to', 'subscriptions.time_zone') }}, cast('9999-12-31' as datetime))
        ) as counts_until_at
    from commitments
    inner join subscriptions
        on commitments.subscription_id = subscriptions.subscription_id
    inner join currencies
        on commitments.currency_code = currencies.currency_code

),

{# Each full period, with the days on which the commitment holds. #}
committed_days as (

    select
        commitments.commitment_code,
        parts.full_period_start_at,
        parts.full_period_end_at,
        max(parts.full_days) as full_days,
        sum(
            {{ local_days(
                'greatest(parts.part_start_at, commitments.from_at)',
                'least(parts.part_end_at, coalesce(commitments.to_at, parts.part_end_at))',
                'parts.time_zone'
            ) }}
        ) as committed_days
    from commitments_in_utc as commitments
    inner join parts
        on
            commitments.subscription_id = parts.subscription_id
            and commitments.from_at < parts.part_end_at
            and coalesce(commitments.to_at, parts.part_end_at) > parts.part_start_at
    where commitments.true_up = 'service_period'
    group by
        commitments.commitment_code,
        parts.full_period_start_at,
        parts.full_period_end_at

),

full_period_commitments as (

    select
        commitments.commitment_code,
        commitments.true_up,
        commitments.currency_code,
        commitments.minor_units,
        {{ prorate_amount('commitments.amount', 'committed_days.committed_days', 'committed_days.full_days') }}
            as committed_amount,
        service_periods.service_period_id,
        service_periods.ends_full_period as is_complete,
        row_number() over (
            partition by commitments.commitment_code, committed_days.full_period_start_at, committed_days.full_period_end_at
            order by service_periods.service_period_end_at desc, service_periods.service_period_start_at desc
        ) as last_first_rank,
        sum(coalesce(amounts_by_service_period.amount_minor, 0)) over (
            partition by commitments.commitment_code, committed_days.full_period_start_at, committed_days.full_period_end_at
        ) as spent_minor
    from commitments_in_utc as commitments
    inner join committed_days
        on commitments.commitment_code = committed_days.commitment_code
    inner join service_periods
        on
            commitments.subscription_id = service_periods.subscription_id
            and committed_days.full_period_start_at = service_periods.full_period_start_at
            and committed_days.full_period_end_at = service_periods.full_period_end_at
    left join amounts_by_service_period
        on service_periods.service_period_id = amounts_by_service_period.service_period_id

),

{# The part that holds the last instant of the term, or came before it. #}
last_parts_of_terms as (

    select
        commitments.commitment_code,
        parts.service_period_id,
        parts.part_end_at,
        row_number() over (partition by commitments.commitment_code order by parts.part_start_at desc) as last_first_rank
    from commitments_in_utc as commitments
    inner join parts
        on
            commitments.subscription_id = parts.subscription_id
            and commitments.counts_until_at > parts.part_start_at
            and commitments.from_at < parts.part_end_at
    where commitments.true_up = 'term'

),

spent_in_terms as (

    select
        commitments.commitment_code,
        sum(amounts_by_service_period.amount_minor) as spent_minor
    from commitments_in_utc as commitments
    inner join service_periods
        on
            commitments.subscription_id = service_periods.subscription_id
            and commitments.from_at <= service_periods.service_period_start_at
            and commitments.to_at > service_periods.service_period_start_at
    inner join amounts_by_service_period
        on service_periods.service_period_id = amounts_by_service_period.service_period_id
    where commitments.true_up = 'term'
    group by commitments.commitment_code

),

term_commitments as (

    select
        commitments.commitment_code,
        commitments.true_up,
        commitments.currency_code,
        commitments.minor_units,
        last_parts.service_period_id,
        cast(commitments.amount as {{ amount_type() }}) as committed_amount,
        coalesce(spent_in_terms.spent_minor, 0) as spent_minor
    from commitments_in_utc as commitments
    inner join last_parts_of_terms as last_parts
        on
            commitments.commitment_code = last_parts.commitment_code
            and last_parts.last_first_rank = 1
    left join spent_in_terms
        on commitments.commitment_code = spent_in_terms.commitment_code
    where last_parts.part_end_at >= commitments.counts_until_at or commitments.counts_until_at <= {{ as_of() }}

),

commitments_due as (

    select
        commitment_code,
        true_up,
        currency_code,
        minor_units,
        service_period_id,
        committed_amount,
        spent_minor
    from full_period_commitments
    where last_first_rank = 1 and is_complete

    union all

    select
        commitment_code,
        true_up,
        currency_code,
        minor_units,
        service_period_id,
        committed_amount,
        spent_minor
    from term_commitments

),

commitments_rounded as (

    select
        *,
        {{ round_to_minor_units('committed_amount', 'minor_units') }} as committed_money
    from commitments_due

),

commitments_in_minor_units as (

    select
        *,
        {{ in_minor_units('committed_money', 'minor_units') }} as committed_minor
    from commitments_rounded

),

commitments_with_shortfall as (

    select
        commitment_code,
        true_up,
        currency_code,
        service_period_id,
        committed_minor,
        spent_minor,
        cast(committed_minor - spent_minor as bigint) as shortfall_minor
    from commitments_in_minor_units

)

select * from commitments_with_shortfall
