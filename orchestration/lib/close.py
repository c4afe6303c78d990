"""Closing a billing period: what is rated becomes lines of the ledger, which nothing changes afterwards.

The warehouse decides what is appended: `int_line_differences` is what the ledger lacks, `int_pending_adjustments` which
of it may be billed. A close reads both and appends in one transaction, so a crash leaves all of it or nothing, and a
second close finds nothing that lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from orchestration.lib.billing_period import require_billing_period
from orchestration.lib.guards import run_guards
from orchestration.lib.ledger_export import export_runs
from orchestration.lib.price_book import record_price_book
from orchestration.lib.project import MeteringError, Progress, Settings, code_revision
from orchestration.lib.warehouse import (
    Build,
    Warehouse,
    connect,
    is_last_build,
    require_marts,
    require_successful_build,
)

# Columns of ledger.billing_ledger that int_line_differences has under the same name.
_LINE_COLUMNS = (
    "line_id", "rated_line_id", "entry_number", "entry_kind", "corrects_run_id", "service_period_id", "subscription_id",
    "customer_id", "customer_name", "plan_code", "charge_code", "metric_code", "commitment_code", "credit_grant_code",
    "paid_line_id", "line_type", "charge_model", "dimensions", "discount_codes", "time_zone", "original_billing_period",
    "currency_code", "price_version", "metered_quantity", "included_quantity_used", "billable_quantity",
    "unrounded_amount", "gross_amount", "discount_amount", "maximum_reduction_amount", "amount", "amount_minor",
    "event_count", "event_keys_hash", "tiers", "first_event_at", "last_event_at", "service_period_start_at",
    "service_period_end_at", "price_start_at", "price_end_at", "credit_grant_start_at", "due_at",
)  # fmt: skip

_KNOWN_CUSTOMERS = (
    "select customer_id from marts.dim_customers union select customer_id from marts.fct_rated_lines "
    "union select customer_id from ledger.billing_ledger"
)


class CloseRefused(MeteringError):
    """The period may not be closed, or not yet. Nothing was appended."""


@dataclass(frozen=True)
class CloseReport:
    """What a close appended.

    Attributes:
        run_id: the billing run, such as ``2026-10.1``; None when there was nothing to append.
        billing_period: ``YYYY-MM``.
        customers: customers whose period was closed by this run.
        lines: lines appended, adjustments included.
        adjustments: adjustment lines among them.
        waiting: adjustments of these customers that still wait for an approval.
        totals_minor: sum of the lines in minor units, by currency.
        earlier_open: earlier billing periods that still have lines of these customers to close.
        left_behind: those of them that were closed before, but not for the customers of these lines.
    """

    run_id: str | None
    billing_period: str
    customers: int
    lines: int
    adjustments: int
    waiting: int
    totals_minor: dict[str, int]
    earlier_open: tuple[str, ...]
    left_behind: tuple[str, ...]

    def describe(self) -> str:
        """The report as text, with a line more for each thing to look at."""
        if self.run_id is None:
            text = f"{self.billing_period}: nothing to append; everything is in the ledger already"
        else:
            totals = ", ".join(f"{total} {currency}" for currency, total in self.totals_minor.items()) or "no lines"
            text = (
                f"run {self.run_id}: {self.customers} customers closed, {self.lines} lines appended, "
                f"{self.adjustments} of them adjustments; in minor units: {totals}"
            )
        if self.waiting:
            text += f"\n{self.waiting} adjustments wait for an approval: metering adjustments"
        if self.earlier_open:
            text += f"\nearlier periods are not closed: {', '.join(self.earlier_open)}"
        if self.left_behind:
            text += "".join(
                f"\n{period} was closed, but not for all who have lines of it: metering close --period {period}"
                for period in self.left_behind
            )
        return text


@dataclass(frozen=True)
class _Stamps:
    price_book_hash: str
    code_revision: str
    forced_reason: str | None


def close_periods(
    settings: Settings,
    billing_periods: Sequence[str] | None,
    *,
    customers: Sequence[str] = (),
    adjustments_only: bool = False,
    forced_reason: str | None = None,
    progress: Progress,
) -> list[CloseReport]:
    """Append the lines of billing periods, and the adjustments that are ready, to the ledger; a run for each period.

    Args:
        settings: warehouse, and the folder beside it for the exports.
        billing_periods: ``YYYY-MM``, calendar months in the time zone of each subscription, in the order to close them.
            None for all that are over with their grace and have lines that are not closed.
        customers: ids of the customers to close; none for all.
        adjustments_only: bill what has changed of closed periods now, on invoices of these closed periods.
        forced_reason: close although a guard is red or events are still within grace; recorded with the run.
        progress: called with a line of text as the work goes on.

    Returns:
        What was appended for each period; nothing where everything was closed before.

    Raises:
        CloseRefused: a period is not over, within grace, or a customer is not known; nothing was appended for it.
        GuardBreach: a guard is red; nothing was appended.
        MeteringError: the last build failed, or the seeds have changed since; nothing was appended.
    """
    for billing_period in billing_periods or ():
        require_billing_period(billing_period)
    if forced_reason is not None and not forced_reason.strip():
        raise MeteringError("A forced close needs its reason in words.")
    with connect(settings) as warehouse:
        build = require_successful_build(warehouse)
        require_marts(warehouse, "fct_rated_lines", "fct_invoice_lines", "fct_guard_measurements")
        stamps = _Stamps(
            _record_price_book(warehouse, build, settings),
            build.code_revision or code_revision(settings.project),
            forced_reason,
        )
        guards = run_guards(warehouse, settings.data_docs)
        if forced_reason is None:
            guards.require_passed()
        scope = _scope(warehouse, customers)
        periods = _due_periods(warehouse, scope, build.as_of) if billing_periods is None else billing_periods
        reports = []
        for billing_period in periods:
            _require_over(warehouse, billing_period, scope, build.as_of, forced=forced_reason is not None)
            progress(
                f"closing {billing_period} as of {build.as_of} UTC, price book {stamps.price_book_hash[:12]}, "
                f"code {stamps.code_revision[:20]}"
            )
            with warehouse.transaction():
                report = _append(warehouse, billing_period, scope, customers, build, stamps, adjustments_only)
            progress(report.describe())
            reports.append(report)
        export_runs(warehouse, settings.ledger_exports, progress=progress)
    return reports


def _due_periods(warehouse: Warehouse, scope: Sequence[str], as_of: datetime) -> list[str]:
    rows = warehouse.execute(
        "select distinct original_billing_period from intermediate.int_line_differences "
        "where entry_kind = 'original' order by 1"
    ).rows
    return [period for (period,) in rows if _over_at(warehouse, period, scope)[0] <= as_of]


def _require_no_other_build(warehouse: Warehouse, build: Build) -> None:
    """Refuse when the tables may no longer be those of the build that was looked at."""
    if not is_last_build(warehouse, build):
        raise CloseRefused(
            "Another build has begun or ended meanwhile. Nothing was closed: close again when a build has ended well."
        )


def _record_price_book(warehouse: Warehouse, build: Build, settings: Settings) -> str:
    """Keep the seeds that the build rated with, and give their hash: later in the close they may change."""
    with warehouse.transaction():
        recorded = record_price_book(warehouse, settings.project)
        if recorded != build.price_book_hash:
            raise CloseRefused(
                "The seeds have changed since the last build, so what it rated is not what they say: "
                "run metering build."
            )
    return recorded


def _scope(warehouse: Warehouse, customers: Sequence[str]) -> list[str]:
    """Ids of the customers to close: those asked for, or all that are known or have lines."""
    known = [customer_id for (customer_id,) in warehouse.execute(f"{_KNOWN_CUSTOMERS} order by customer_id").rows]
    unknown = sorted(set(customers) - set(known))
    if unknown:
        raise CloseRefused(f"Not in dim_customers: {', '.join(unknown)}. Nothing was closed.")
    return [customer_id for customer_id in known if not customers or customer_id in customers]


def _in_scope(warehouse: Warehouse, customers: Sequence[str]) -> str:
    """SQL for whether a row is of a customer in scope. Snowflake limits how many values a list may have."""
    return f"customer_id in ({', '.join(map(warehouse.literal, customers)) or _KNOWN_CUSTOMERS})"


def _over_at(warehouse: Warehouse, billing_period: str, scope: Sequence[str]) -> tuple[datetime, datetime, str]:
    """When the period is over for the last of the customers, with its grace and without, in UTC; and the time zone."""
    (grace_hours,) = warehouse.execute("select grace_period_hours from staging.stg_event_policy").rows[0]
    wanted = set(scope)
    zones = {
        zone
        for customer_id, zone in warehouse.execute(
            "select distinct customer_id, time_zone from staging.stg_subscriptions"
        ).rows
        if customer_id in wanted
    } or {"UTC"}
    year, month = int(billing_period[:4]), int(billing_period[5:])
    following = datetime(year + month // 12, month % 12 + 1, 1)
    end, zone = max((following.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC), zone) for zone in zones)
    end = end.replace(tzinfo=None)
    return end + timedelta(hours=int(grace_hours)), end, zone


def _require_over(
    warehouse: Warehouse, billing_period: str, scope: Sequence[str], as_of: datetime, *, forced: bool
) -> None:
    with_grace, end, zone = _over_at(warehouse, billing_period, scope)
    if as_of < end:
        raise CloseRefused(
            f"{billing_period} ends at {end} UTC ({zone}), and the last build saw events until {as_of} UTC: build "
            "again after its end. Nothing was closed."
        )
    if as_of < with_grace and not forced:
        raise CloseRefused(
            f"Events of {billing_period} are within grace until {with_grace} UTC ({zone}), and the last build saw "
            f"events until {as_of} UTC: build again after that, or give --force REASON. Nothing was closed."
        )


def _append(
    warehouse: Warehouse,
    billing_period: str,
    scope: Sequence[str],
    customers: Sequence[str],
    build: Build,
    stamps: _Stamps,
    adjustments_only: bool,
) -> CloseReport:
    # Whoever closes holds this row until the end: a second close waits for it (Snowflake) or is told (DuckDB).
    warehouse.execute("update ledger.close_lock set holder = ?", [build.invocation_id])
    _require_no_other_build(warehouse, build)
    # A build of the past does not see what came later: its lines would take back what was billed for that.
    ((ledger_as_of,),) = warehouse.execute("select max(as_of) from ledger.billing_runs").rows
    if ledger_as_of is not None and build.as_of < ledger_as_of:
        raise CloseRefused(
            f"The last build saw events until {build.as_of} UTC, the last close until {ledger_as_of} UTC: build again "
            "without an older as_of. Nothing was closed."
        )
    closed = {
        customer_id
        for (customer_id,) in warehouse.execute(
            "select customer_id from ledger.closed_periods where billing_period = ?", [billing_period]
        ).rows
    }
    if adjustments_only and closed.isdisjoint(scope):
        raise CloseRefused(
            f"{billing_period} was not closed for any of these customers, so adjustments have no invoice of it to "
            f"follow: metering close --period {billing_period} closes it, or give a month that is closed. Nothing was "
            "closed."
        )
    to_close = [] if adjustments_only else [customer_id for customer_id in scope if customer_id not in closed]
    ((number,),) = warehouse.execute(
        "select count(*) + 1 from ledger.billing_runs where billing_period = ?", [billing_period]
    ).rows
    run_id = f"{billing_period}.{number}"
    closed_at = datetime.now(UTC).replace(tzinfo=None)
    in_scope = _in_scope(warehouse, customers)
    of_customers = (
        f"{in_scope} and customer_id {'in' if adjustments_only else 'not in'} "
        "(select customer_id from ledger.closed_periods where billing_period = $billing_period)"
    )
    is_period = not adjustments_only
    warehouse.execute(
        f"""
        insert into ledger.closed_terms (run_id, service_period_id, billing_period, terms_hash, recorded_at)
        select $run_id, service_period_id, $billing_period, terms_hash, $closed_at
        from intermediate.int_service_period_terms
        where $is_period and service_period_id in (
            select service_period_id from intermediate.int_service_periods
            where {of_customers} and $billing_period in (billing_period, advance_billing_period)
        )
        union all
        select distinct $run_id, service_period_id, original_billing_period, terms_hash, $closed_at
        from intermediate.int_pending_adjustments
        where {of_customers} and adjustment_status = 'ready' and cause = 're_rating'
        """,
        {"run_id": run_id, "billing_period": billing_period, "closed_at": closed_at, "is_period": is_period},
    )
    columns = ", ".join(_LINE_COLUMNS)
    warehouse.execute(
        f"""
        insert into ledger.billing_ledger (
            {columns}, description,
            run_id, invoice_id, billing_period, as_of, price_book_hash, code_revision, closed_at
        )
        with lines as (
            select {columns}, description
            from intermediate.int_line_differences
            where
                $is_period and {of_customers}
                and entry_kind = 'original' and original_billing_period = $billing_period
            union all
            select {columns}, 'Adjustment of ' || original_billing_period || ': ' || description as description
            from intermediate.int_pending_adjustments
            where {of_customers} and adjustment_status = 'ready'
        ),
        earlier_runs as (
            select customer_id as billed_customer_id, count(distinct run_id) as runs
            from ledger.billing_ledger
            where billing_period = $billing_period
            group by customer_id
        )
        select
            {columns}, description,
            $run_id,
            customer_id || '/' || $billing_period || '/' || currency_code
            || case when runs > 0 then '/' || cast(runs + 1 as varchar) else '' end,
            $billing_period, $as_of, $price_book_hash, $code_revision, $closed_at
        from lines
        left join earlier_runs
            on lines.customer_id = earlier_runs.billed_customer_id
        """,
        {
            "run_id": run_id, "billing_period": billing_period, "is_period": is_period, "as_of": build.as_of,
            "price_book_hash": stamps.price_book_hash, "code_revision": stamps.code_revision, "closed_at": closed_at,
        },
    )  # fmt: skip
    totals = warehouse.execute(
        "select currency_code, count(*), cast(count_if(entry_kind = 'adjustment') as bigint), sum(amount_minor) "
        "from ledger.billing_ledger where run_id = ? group by currency_code order by currency_code",
        [run_id],
    ).rows
    lines = sum(int(row[1]) for row in totals)
    if to_close:
        # After the lines, which are drafts only as long as their period is not closed.
        warehouse.execute(
            f"""
            insert into ledger.closed_periods (run_id, customer_id, billing_period)
            select $run_id, customer_id, $billing_period
            from ({_KNOWN_CUSTOMERS}) as known_customers
            where {of_customers}
            """,
            {"run_id": run_id, "billing_period": billing_period},
        )
    if lines or to_close:
        warehouse.execute(
            """
            insert into ledger.billing_runs (
                run_id, billing_period, run_kind, as_of, price_book_hash, code_revision, build_invocation_id,
                forced_reason, customer_count, line_count, closed_at
            )
            values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            """,
            [
                run_id, billing_period, "adjustments" if adjustments_only else "period", build.as_of,
                stamps.price_book_hash, stamps.code_revision, build.invocation_id, stamps.forced_reason,
                len(to_close), lines, closed_at,
            ],
        )  # fmt: skip
    ((waiting,),) = warehouse.execute(
        f"select count(*) from intermediate.int_pending_adjustments where {in_scope} and adjustment_status <> 'ready'"
    ).rows
    earlier = warehouse.execute(
        "select distinct differences.original_billing_period, runs.billing_period is not null "
        "from intermediate.int_line_differences as differences "
        "left join ledger.billing_runs as runs "
        "on differences.original_billing_period = runs.billing_period and runs.run_kind = 'period' "
        f"where {in_scope} and differences.entry_kind = 'original' and differences.original_billing_period < ? "
        "order by 1",
        [billing_period],
    ).rows
    # Once more, since on Snowflake a build may replace tables between two statements of a transaction.
    _require_no_other_build(warehouse, build)
    return CloseReport(
        run_id=run_id if lines or to_close else None,
        billing_period=billing_period,
        customers=len(to_close),
        lines=lines,
        adjustments=sum(int(row[2]) for row in totals),
        waiting=int(waiting),
        totals_minor={row[0]: int(row[3]) for row in totals},
        earlier_open=tuple(period for period, _ in earlier),
        left_behind=tuple(period for period, was_closed in earlier if was_closed),
    )
