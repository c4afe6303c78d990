"""Past states, built again beside the present: marts as known at an instant, and billing runs as they were closed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestration.lib.price_book import restore_price_book, seed_columns
from orchestration.lib.project import MeteringError, Progress, Settings, code_revision
from orchestration.lib.scenario import Scenario, beside_the_present, name_from
from orchestration.lib.warehouse import Warehouse, connect

# Where the ledger's tables say when a row was added.
_LEDGER_ROWS_UNTIL = {
    "billing_runs": "closed_at <= {instant}",
    "billing_ledger": "closed_at <= {instant}",
    "closed_terms": "recorded_at <= {instant}",
    "closed_periods": "run_id in (select run_id from ledger.billing_runs where closed_at <= {instant})",
}


@dataclass(frozen=True)
class PastState:
    """Marts as known at an instant.

    Attributes:
        instant: in UTC.
        price_book_hash: price book in force then.
        prefix: of the schemas that hold them.
        schemas: names of these schemas.
    """

    instant: datetime
    price_book_hash: str
    prefix: str
    schemas: tuple[str, ...]


@dataclass(frozen=True)
class LineDifference:
    """A line whose reproduction is not what the ledger says; amounts in minor units of the currency."""

    rated_line_id: str
    customer_id: str
    billing_period: str
    currency: str
    ledger_minor: int
    rebuilt_minor: int


@dataclass(frozen=True)
class Reproduction:
    """A billing run, built again.

    Attributes:
        run_id: the run.
        as_of: what it had seen, UTC.
        lines: lines that were compared: all of the periods that it closed, and those that it adjusted.
        totals_minor: what the ledger holds of these lines up to the run, in minor units, by currency.
        differences: lines that are not equal.
        waiting: lines of periods closed before that had changed by then, but were not billed by the run.
    """

    run_id: str
    as_of: datetime
    lines: int
    totals_minor: dict[str, int]
    differences: tuple[LineDifference, ...]
    waiting: int

    def describe(self) -> str:
        totals = ", ".join(f"{total} {currency}" for currency, total in self.totals_minor.items()) or "none"
        if self.differences:
            text = f"run {self.run_id}: DIFFERENT in {len(self.differences)} of {self.lines} lines"
        else:
            text = f"run {self.run_id}: {self.lines} lines equal; in minor units: {totals}"
        if self.waiting:
            text += f"; {self.waiting} lines of earlier periods had changed and were not billed by it"
        for line in self.differences[:20]:
            text += (
                f"\n  {line.customer_id} {line.billing_period} line {line.rated_line_id}: ledger {line.ledger_minor}, "
                f"built again {line.rebuilt_minor} {line.currency} (minor units)"
            )
        if len(self.differences) > 20:
            text += f"\n  and {len(self.differences) - 20} more"
        return text


@dataclass(frozen=True)
class _Run:
    run_id: str
    as_of: datetime
    price_book_hash: str
    code_revision: str
    closed_at: datetime


def rebuild_as_of(
    settings: Settings, instant: datetime, *, name: str | None = None, marts: Sequence[str] = (), progress: Progress
) -> PastState:
    """Build marts as known at an instant into schemas of their own, which stay until they are dropped.

    Known then are the deliveries received until the instant, the price book of the last successful build that had
    begun, and what the ledger held.

    Args:
        settings: the warehouse.
        instant: in UTC, without a time zone.
        name: what the schemas are called after; the instant by default.
        marts: names of marts to build with all they need; none for all.
        progress: called with a line of text as the work goes on.

    Raises:
        MeteringError: the instant has not passed, no build had succeeded by then, or a mart is not known.
    """
    if instant > datetime.now(UTC).replace(tzinfo=None):
        raise MeteringError(f"{instant} UTC has not passed: nobody knows yet what will be known then.")
    known = {path.stem for path in (settings.project / "models" / "marts").rglob("*.sql")}
    unknown = sorted(set(marts) - known)
    if unknown:
        raise MeteringError(f"No such marts: {', '.join(unknown)}. Known are: {', '.join(sorted(known))}.")
    with connect(settings) as warehouse:
        digest = _price_book_at(warehouse, instant)
    with beside_the_present(settings, "asof", name or f"{instant:%Y%m%dt%H%M%S}", keep=True) as scenario:
        _build_past(settings, scenario, instant, digest, marts, progress)
        with connect(settings) as warehouse:
            rows = warehouse.execute("select distinct lower(schema_name) from information_schema.schemata").rows
    schemas = sorted(schema for (schema,) in rows if schema.startswith(scenario.prefix))
    return PastState(instant, digest, scenario.prefix, tuple(schemas))


def reproduce_runs(settings: Settings, run_id: str | None, *, progress: Progress) -> list[Reproduction]:
    """Build billing runs again, from the deliveries and the price book of their time, and hold them against the ledger.

    Runs that were closed on one build are compared with one build.

    Args:
        settings: the warehouse.
        run_id: the run, such as ``2026-10.1``; None for all.
        progress: called with a line of text as the work goes on.

    Raises:
        MeteringError: there is no such run, or its price book was not recorded.
    """
    with connect(settings) as warehouse:
        runs = [
            _Run(*row)
            for row in warehouse.execute(
                "select run_id, as_of, price_book_hash, code_revision, closed_at from ledger.billing_runs "
                "order by closed_at, run_id"
            ).rows
        ]
    if run_id is not None and run_id not in {run.run_id for run in runs}:
        raise MeteringError(
            f"There is no billing run {run_id!r}. The ledger has: {', '.join(run.run_id for run in runs) or 'none'}."
        )
    builds: dict[tuple[datetime, str], list[_Run]] = {}
    for run in runs:
        if run_id in (None, run.run_id):
            builds.setdefault((run.as_of, run.price_book_hash), []).append(run)
    revision = code_revision(settings.project)
    found = []
    for (as_of, digest), runs_of_build in builds.items():
        for other in sorted({run.code_revision for run in runs_of_build} - {revision}):
            progress(f"closed by the project's revision {other[:20]}; this is {revision[:20]}")
        with beside_the_present(settings, "reproduce", name_from(runs_of_build[0].run_id), keep=False) as scenario:
            _build_past(settings, scenario, as_of, digest, ["fct_rated_lines"], progress)
            with connect(settings) as warehouse:
                found += [_compare(warehouse, scenario, run) for run in runs_of_build]
    return found


def _price_book_at(warehouse: Warehouse, instant: datetime) -> str:
    """The price book of the last successful build of everything that had begun at an instant."""
    row = warehouse.execute(
        """
        select started.price_book_hash, started.logged_at
        from ops.build_log as started
        inner join ops.build_log as finished
            on started.invocation_id = finished.invocation_id and finished.step = 'finished'
        where
            started.step = 'started'
            and finished.is_whole
            and finished.failed_nodes = 0
            and started.logged_at <= cast(? as datetime)
        order by started.logged_at desc
        limit 1
        """,
        [str(instant)],
    ).fetchone()
    if row is None:
        raise MeteringError(
            f"No successful build had begun by {instant} UTC, so there is no price book of that time. To see old "
            "events at today's prices, use metering build --as-of with a database of its own."
        )
    digest, built_at = row
    if digest is None:
        raise MeteringError(
            f"The build of {built_at} UTC, the last before {instant} UTC, was made by dbt's own command with a seed "
            "too large for it to tell its price book, so the seeds of that time are not known."
        )
    return str(digest)


def _build_past(
    settings: Settings,
    scenario: Scenario,
    instant: datetime,
    digest: str,
    marts: Sequence[str],
    progress: Progress,
) -> None:
    with connect(settings) as warehouse:
        _restore_seeds(warehouse, scenario, digest, progress)
        ledger = scenario.schema("ledger")
        warehouse.execute(f"create schema if not exists {ledger}")
        for table, condition in _LEDGER_ROWS_UNTIL.items():
            until = condition.format(instant=f"cast({warehouse.literal(str(instant))} as datetime)")
            warehouse.execute(f"create view {ledger}.{table} as select * from ledger.{table} where {until}")
    progress(f"building as of {instant} UTC with price book {digest[:12]}")
    scenario.build(
        *("--resource-type", "seed", "--resource-type", "model"),
        *(("--select", *(f"+{mart}" for mart in marts)) if marts else ()),
        as_of=instant,
        variables={"ledger_schema": ledger},
        progress=progress,
    )


def _restore_seeds(warehouse: Warehouse, scenario: Scenario, digest: str, progress: Progress) -> None:
    """Put the seeds of a price book into the place of the present ones.

    The models are today's. Seeds and columns that they have gained since are empty, as they are where nobody uses them.
    """
    present = {path.stem: path for path in scenario.seeds.rglob("*.csv")}
    columns = {seed: seed_columns(path) for seed, path in present.items()}
    for path in present.values():
        path.unlink()
    restored = {path.stem: path for path in restore_price_book(warehouse, digest, scenario.seeds)}
    for seed, path in present.items():
        if seed not in restored:
            _write_rows(path, [columns[seed]])
            progress(f"{seed}.csv was not there yet: it is empty")
            continue
        missing = [column for column in columns[seed] if column not in seed_columns(restored[seed])]
        if missing:
            with restored[seed].open(encoding="utf-8", newline="") as stream:
                first, *rows = csv.reader(stream)
            _write_rows(restored[seed], [[*first, *missing], *([*row, *("" for _ in missing)] for row in rows if row)])
            progress(f"{seed}.csv did not have yet, so is empty in: {', '.join(missing)}")


def _write_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def _compare(warehouse: Warehouse, scenario: Scenario, run: _Run) -> Reproduction:
    rows = warehouse.execute(
        f"""
        with entries as (
            select *
            from ledger.billing_ledger
            where closed_at <= cast($closed_at as datetime)
        ),
        balances as (
            select
                rated_line_id,
                currency_code,
                customer_id,
                original_billing_period,
                sum(amount_minor) as amount_minor,
                max(case when run_id = $run_id then 1 else 0 end) as is_of_run
            from entries
            group by rated_line_id, currency_code, customer_id, original_billing_period
        ),
        closed as (
            select
                periods.customer_id,
                periods.billing_period,
                max(case when periods.run_id = $run_id then 1 else 0 end) as is_of_run
            from ledger.closed_periods as periods
            inner join ledger.billing_runs as runs
                on periods.run_id = runs.run_id
            where runs.closed_at <= cast($closed_at as datetime)
            group by periods.customer_id, periods.billing_period
        ),
        lines as (
            select
                coalesce(rated.line_id, balances.rated_line_id) as rated_line_id,
                coalesce(rated.customer_id, balances.customer_id) as customer_id,
                coalesce(rated.billing_period, balances.original_billing_period) as billing_period,
                coalesce(rated.currency_code, balances.currency_code) as currency_code,
                coalesce(balances.amount_minor, 0) as ledger_minor,
                coalesce(rated.amount_minor, 0) as rebuilt_minor,
                coalesce(balances.is_of_run, 0) as is_of_run
            from {scenario.schema("marts")}.fct_rated_lines as rated
            full outer join balances
                on rated.line_id = balances.rated_line_id and rated.currency_code = balances.currency_code
        )
        select
            lines.rated_line_id,
            lines.customer_id,
            lines.billing_period,
            lines.currency_code,
            lines.ledger_minor,
            lines.rebuilt_minor,
            greatest(lines.is_of_run, closed.is_of_run) as is_of_run
        from lines
        inner join closed
            on lines.customer_id = closed.customer_id and lines.billing_period = closed.billing_period
        order by lines.customer_id, lines.billing_period, lines.currency_code, lines.rated_line_id
        """,
        {"run_id": run.run_id, "closed_at": str(run.closed_at)},
    ).rows
    totals: dict[str, int] = {}
    for _, _, _, currency, ledger_minor, _, is_of_run in rows:
        if is_of_run:
            totals[currency] = totals.get(currency, 0) + int(ledger_minor)
    return Reproduction(
        run_id=run.run_id,
        as_of=run.as_of,
        lines=sum(1 for row in rows if row[-1]),
        totals_minor=dict(sorted(totals.items())),
        differences=tuple(
            LineDifference(line_id, customer_id, period, currency, int(ledger_minor), int(rebuilt_minor))
            for line_id, customer_id, period, currency, ledger_minor, rebuilt_minor, is_of_run in rows
            if is_of_run and ledger_minor != rebuilt_minor
        ),
        waiting=sum(1 for row in rows if not row[-1] and row[4] != row[5]),
    )
