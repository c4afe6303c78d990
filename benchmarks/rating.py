"""The sample price book, rated by hand: what each engine is given to roll up, and the lines that come of it.

Written for the seeds as they are and nothing else: calendar months in each subscription's time zone, one change of the
prices of generated tokens, one price of a customer's own, five charge models. Numbers (prices, tiers, included
quantities) are read from the seeds; which rule applies to which metric is fixed here. Fees, minimums, commitments and
credits are left out: they do not depend on events but through the lines, of which there are some thousand.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

SEEDS = Path(__file__).resolve().parents[1] / "seeds"
# Local months that the generated events touch in any time zone.
_FIRST_MONTH, _MONTH_AFTER_LAST = "2026-07-01", "2026-12-01"


def create_reference_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Create customers (with the length of their windows), service_periods and segments from the seeds.

    A segment is a part of a service period with one version of the prices of generated tokens. All of them begin at a
    full or half hour of UTC, so windows of half an hour, for customers who need them, are never crossed.
    """
    for folder, name in (
        ("accounts", "customers"),
        ("accounts", "subscriptions"),
        ("pricing", "charges"),
        ("pricing", "charge_tiers"),
        ("pricing", "entitlements"),
        ("pricing", "discounts"),
        ("pricing", "plans"),
        ("pricing", "currencies"),
    ):
        path = str(SEEDS / folder / f"{name}.csv").replace("'", "''")
        connection.execute(
            f"create or replace temp table seed_{name} as "
            f"select * from read_csv('{path}', header = true, all_varchar = true)"
        )
    connection.execute(
        f"""
        create or replace table service_periods as
        with months as (
            select month_start_at
            from range(
                timestamp '{_FIRST_MONTH}', timestamp '{_MONTH_AFTER_LAST}', interval 1 month
            ) as months(month_start_at)
        ),
        periods as (
            select
                subscriptions.*,
                month_start_at,
                {_utc("month_start_at")} as full_start_at,
                {_utc("month_start_at + interval 1 month")} as full_end_at,
                greatest(full_start_at, {_utc("started_at::timestamp")}) as period_start_at,
                least(full_end_at, coalesce({_utc("ended_at::timestamp")}, full_end_at)) as period_end_at
            from seed_subscriptions as subscriptions, months
        )
        select
            row_number() over (order by subscription_id, month_start_at)::integer as period_id,
            subscription_id,
            customer_id,
            plan_code,
            time_zone,
            started_at::timestamp < month_start_at as has_earlier_period,
            month_start_at,
            period_start_at,
            period_end_at,
            day(last_day(month_start_at))::integer as full_days,
            {_local("period_end_at")}::date - {_local("period_start_at")}::date as active_days
        from periods
        where period_start_at < period_end_at
        """
    )
    connection.execute(
        f"""
        create or replace table segments as
        select
            row_number() over (order by period_id, price_version)::integer as segment_id,
            period_id,
            service_periods.customer_id,
            price_version::integer as price_version,
            greatest(period_start_at, {_utc("valid_from::timestamp")}) as segment_start_at,
            least(period_end_at, coalesce({_utc("valid_to::timestamp")}, period_end_at)) as segment_end_at
        from service_periods
        inner join seed_charges as charges
            on service_periods.plan_code = charges.plan_code and charges.metric_code = 'generated_tokens'
        where segment_start_at < segment_end_at
        """
    )
    connection.execute(
        """
        create or replace table customers as
        select
            customers.customer_id,
            case
                when bool_or(extract(minute from segment_start_at) <> 0 or extract(minute from segment_end_at) <> 0)
                    then 1800000000
                else 3600000000
            end::bigint as window_us
        from seed_customers as customers
        left join segments on customers.customer_id = segments.customer_id
        group by customers.customer_id
        """
    )


def _utc(local: str) -> str:
    return f"timezone('UTC', timezone(time_zone, {local}))"


def _local(instant: str) -> str:
    return f"timezone(time_zone, timezone('UTC', {instant}))"


def _rounded(amount: str) -> str:
    """Rounded half away from zero to the minor units of the currency, which DuckDB takes as a constant only."""
    branches = (f"when {digits} then round({amount}, {digits})::decimal(28, 4)" for digits in (0, 2, 3))
    return f"case minor_units {' '.join(branches)} end"


# The same rule for all charges: the tiers that the quantity climbs through between two bounds, discounts, one rounding.
_LINES = f"""
    create or replace table invoice_lines as
    with recursive

    -- What was used up to the start and to the end of each segment of the metered charge.
    context_by_period as (
        select segments.period_id, sum(context_tokens) as units
        from requests_by_segment
        inner join segments on requests_by_segment.segment_id = segments.segment_id
        group by segments.period_id
    ),

    periods_numbered as (
        select
            service_periods.*,
            row_number() over (partition by subscription_id order by period_start_at) as number,
            coalesce(context_by_period.units, 0)::decimal(20, 9) as context_units,
            entitlements.included_quantity::decimal(20, 9) as full_quantity,
            coalesce(entitlements.rollover_limit, '0')::decimal(20, 9) as rollover_limit,
            -- Rounded to 9 decimals, half up, in whole numbers.
            (
                (2 * (full_quantity * 1000000000)::hugeint * active_days + full_days) // (2 * full_days)
                * 0.000000001::decimal(10, 9)
            )::decimal(20, 9) as included_quantity
        from service_periods
        inner join seed_plans as plans on service_periods.plan_code = plans.plan_code
        inner join seed_entitlements as entitlements
            on entitlements.charge_code = lower(plans.currency_code) || '-context'
        left join context_by_period on service_periods.period_id = context_by_period.period_id
    ),

    -- Before the first period there was no usage, so all that the limit lets through was carried over.
    context_entitlements as (
        select
            period_id,
            subscription_id,
            number,
            (included_quantity + case when has_earlier_period then rollover_limit else 0 end)::decimal(20, 9)
                as entitled,
            least(rollover_limit, greatest(entitled - context_units, 0))::decimal(20, 9) as left_over
        from periods_numbered
        where number = 1

        union all

        select
            periods.period_id,
            periods.subscription_id,
            periods.number,
            (periods.included_quantity + before.left_over)::decimal(20, 9) as entitled,
            least(
                periods.rollover_limit,
                greatest(periods.included_quantity + before.left_over - periods.context_units, 0)
            )::decimal(20, 9) as left_over
        from context_entitlements as before
        inner join periods_numbered as periods
            on before.subscription_id = periods.subscription_id and before.number + 1 = periods.number
    ),

    requests_by_period as (
        select
            segments.period_id,
            sum(requests) as requests,
            sum(context_tokens) as context_tokens,
            max(longest_context) as longest_context
        from requests_by_segment
        inner join segments on requests_by_segment.segment_id = segments.segment_id
        group by segments.period_id
    ),

    generated_by_segment as (
        select
            segments.period_id,
            segments.price_version,
            segments.segment_start_at,
            '{{"service": "' || service || '"}}' as dimensions,
            requests,
            sum(generated_tokens) over (partition by segments.period_id, service order by segment_start_at)
                as units_through,
            units_through - generated_tokens as units_before,
            sum(generated_tokens) over (partition by segments.period_id, service) as units_of_period
        from requests_by_segment
        inner join segments on requests_by_segment.segment_id = segments.segment_id
    ),

    quantities as (
        select
            period_id, 'requests' as charge, 'package' as model, '{{}}' as dimensions, 1 as price_version,
            null::timestamp as segment_start_at, 0::decimal(20, 9) as units_before,
            requests::decimal(20, 9) as units_through,
            requests::decimal(20, 9) as units_of_period, 0::decimal(20, 9) as entitled, requests::bigint as event_count
        from requests_by_period

        union all

        select
            requests_by_period.period_id, 'context', 'graduated', '{{}}', 1, null, 0, context_tokens, context_tokens,
            entitled, requests
        from requests_by_period
        inner join context_entitlements on requests_by_period.period_id = context_entitlements.period_id

        union all

        select
            period_id, 'longest-context', 'graduated', '{{}}', 1, null, 0, longest_context, longest_context, 0, requests
        from requests_by_period

        union all

        select
            period_id, 'generated', 'volume', dimensions, price_version, segment_start_at, units_before, units_through,
            units_of_period, 0, requests
        from generated_by_segment

        union all

        select
            sessions_by_period.period_id, 'users', 'graduated', '{{}}', coalesce(own.price_version::integer, 1), null,
            0, users, users, entitlements.included_quantity::decimal(20, 9), sessions
        from sessions_by_period
        inner join service_periods on sessions_by_period.period_id = service_periods.period_id
        inner join seed_plans as plans on service_periods.plan_code = plans.plan_code
        inner join seed_entitlements as entitlements
            on entitlements.charge_code = lower(plans.currency_code) || '-users'
        left join seed_charges as own
            on
                own.charge_code = entitlements.charge_code
                and own.customer_id = service_periods.customer_id
                and service_periods.month_start_at >= own.valid_from::timestamp
                and service_periods.month_start_at < own.valid_to::timestamp

        union all

        select period_id, 'sessions', 'graduated', '{{}}', 1, null, 0, session_seconds, session_seconds, 0, sessions
        from sessions_by_period
    ),

    billable as (
        select
            service_periods.*,
            plans.currency_code,
            currencies.minor_units::integer as minor_units,
            lower(plans.currency_code) || '-' || charge as charge_code,
            model,
            dimensions,
            price_version,
            coalesce(quantities.segment_start_at, period_start_at) as price_start_at,
            greatest(units_before - entitled, 0)::decimal(20, 9) as x_before,
            greatest(units_through - entitled, 0)::decimal(20, 9) as x_through,
            greatest(units_of_period - entitled, 0)::decimal(20, 9) as x_of_period,
            event_count
        from quantities
        inner join service_periods on quantities.period_id = service_periods.period_id
        inner join seed_plans as plans on service_periods.plan_code = plans.plan_code
        inner join seed_currencies as currencies on plans.currency_code = currencies.currency_code
    ),

    tiers as (
        select
            charge_code,
            price_version::integer as price_version,
            coalesce(
                lag(up_to::decimal(20, 9)) over (
                    partition by charge_code, price_version order by tier_number::integer
                ),
                0
            ) as above,
            coalesce(up_to::decimal(20, 9), 99999999999) as up_to,
            package_size::bigint as package_size,
            unit_amount::decimal(14, 9) as unit_amount
        from seed_charge_tiers
    ),

    rated as (
        select
            billable.*,
            sum(
                case model
                    when 'package'
                        then (x_through::bigint + package_size - 1) // package_size
                        - (x_before::bigint + package_size - 1) // package_size
                    when 'volume'
                        then case when x_of_period > above and x_of_period <= up_to then x_through - x_before else 0 end
                    else least(greatest(x_through, above), up_to) - least(greatest(x_before, above), up_to)
                end::decimal(20, 9) * unit_amount
            )::decimal(34, 18) as gross_amount
        from billable
        inner join tiers
            on billable.charge_code = tiers.charge_code and billable.price_version = tiers.price_version
        group by all
    ),

    discounted as (
        select
            rated.*,
            (gross_amount * (1 - coalesce(discounts.percentage, '0')::decimal(2, 1)))::decimal(38, 19) as net_amount,
            charges.maximum_amount::decimal(18, 4) * active_days as maximum_days
        from rated
        inner join seed_charges as charges
            on rated.charge_code = charges.charge_code and rated.price_version = charges.price_version::integer
        left join seed_discounts as discounts
            on
                rated.plan_code = discounts.plan_code
                and rated.month_start_at >= discounts.valid_from::timestamp
                and rated.month_start_at < discounts.valid_to::timestamp
    )

    select
        subscription_id,
        customer_id,
        charge_code,
        price_version,
        dimensions,
        period_start_at as service_period_start_at,
        price_start_at,
        event_count,
        currency_code,
        least(
            {_rounded("net_amount")},
            coalesce({_rounded("(maximum_days / full_days)::decimal(28, 9)")}, 99999999999999)
        )::decimal(28, 4) as amount
    from discounted
"""


def rate(connection: duckdb.DuckDBPyConnection) -> int:
    """Rate requests_by_segment and sessions_by_period into the table invoice_lines.

    requests_by_segment has segment_id, service, requests, context_tokens, generated_tokens, longest_context;
    sessions_by_period has period_id, sessions, session_seconds, users.

    Returns:
        Lines.
    """
    connection.execute(_LINES)
    row = connection.execute("select count(*) from invoice_lines").fetchone()
    assert row is not None
    return int(row[0])
