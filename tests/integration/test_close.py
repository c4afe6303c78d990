"""The close: what is billed, once, for good, and what becomes of changes afterwards."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from orchestration.lib import close as close_module
from orchestration.lib import project
from orchestration.lib import warehouse as connections
from orchestration.lib.adjustments import describe_adjustment, list_pending_adjustments, rows_to_approve
from orchestration.lib.close import CloseRefused, CloseReport, close_periods
from orchestration.lib.guards import GuardBreach
from orchestration.lib.price_book import price_book_hash
from orchestration.lib.project import MeteringError, Settings
from orchestration.lib.warehouse import BusyError, connect
from tests.integration.conftest import Row, Warehouse, llm_request

AFTER_SEPTEMBER = datetime(2026, 10, 3)
AFTER_OCTOBER = datetime(2026, 11, 3)

# What a close reads, and what shows its lines afterwards.
CLOSING = ("+fct_invoices", "+fct_pending_adjustments", "+fct_guard_measurements", "dim_customers")


def usage(key: str, day: str, tokens: int, customer: str = "cus_000") -> dict[str, Any]:
    return llm_request(key, occurred_at=f"{day}T10:00:00Z", customer_id=customer, p_context_tokens=tokens)


def build(warehouse: Warehouse, as_of: datetime, *select: str, full_refresh: bool = False) -> None:
    warehouse.build_models(*select, as_of=as_of.isoformat(sep=" "), full_refresh=full_refresh)
    warehouse.count_as_whole()


def close(warehouse: Warehouse, period: str, **options: Any) -> CloseReport:
    [report] = close_periods(warehouse.settings, [period], progress=lambda _: None, **options)
    return report


def ledger(warehouse: Warehouse) -> list[Row]:
    return warehouse.query("select * from ledger.billing_ledger order by run_id, line_id")


def change_seed(project: Path, seed: str, change: Callable[[dict[str, str]], None]) -> None:
    path = project / "seeds" / seed
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
        fields = list(reader.fieldnames or [])
    for row in rows:
        change(row)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def built_after_september(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Usage of September and October, received in time, built after September."""
    folder = tmp_path_factory.mktemp("two_months")
    warehouse = Warehouse(Settings(database=folder / "metering.duckdb", target="ci"), folder)
    for day in range(1, 29):
        september = usage(f"s{day}", f"2026-09-{day:02}", 200_000)
        october = usage(f"o{day}", f"2026-10-{day:02}", 10_000, f"cus_00{day % 4}")
        warehouse.insert_delivery("september", day, datetime(2026, 9, day, 11), september)
        warehouse.insert_delivery("october", day, datetime(2026, 10, day, 11), october)
    build(warehouse, AFTER_SEPTEMBER, *CLOSING)
    return warehouse.settings.database


@pytest.fixture
def two_months(warehouse_of_copy: Warehouse, built_after_september: Path) -> Warehouse:
    """That warehouse, for one test, with a project whose seeds it may change."""
    warehouse_of_copy.settings.database.parent.mkdir(parents=True)
    shutil.copy(built_after_september, warehouse_of_copy.settings.database)
    return warehouse_of_copy


def test_closed_is_closed(two_months: Warehouse, project_copy: Path) -> None:
    """A close appends what is rated, once. A late event and a new price become adjustments; the ledger is never rewritten."""
    warehouse = two_months
    september = close(warehouse, "2026-09")
    assert september.run_id == "2026-09.1"
    billed = ledger(warehouse)
    assert len(billed) == september.lines > 5
    assert warehouse.query(
        "select line_id, amount_minor, event_count from marts.fct_rated_lines where billing_period = '2026-09' order by 1"
    ) == warehouse.query("select rated_line_id, amount_minor, event_count from ledger.billing_ledger order by 1")
    [(run, as_of, price_book, revision)] = warehouse.query(
        "select distinct run_id, as_of, price_book_hash, code_revision from ledger.billing_ledger"
    )
    assert (run, as_of) == ("2026-09.1", AFTER_SEPTEMBER)
    assert price_book
    # Of the build, also where another checkout closes.
    assert [(revision,)] == warehouse.query("select distinct code_revision from ops.build_log")
    assert revision not in (None, project.code_revision(project_copy))
    exported = warehouse.settings.ledger_exports / "2026-09.1.parquet"
    assert duckdb.execute(f"select * from '{exported}' order by run_id, line_id").fetchall() == billed

    # Again: nothing, also after a full refresh.
    assert close(warehouse, "2026-09").run_id is None
    build(warehouse, AFTER_SEPTEMBER, *CLOSING, full_refresh=True)
    assert close(warehouse, "2026-09").run_id is None
    assert ledger(warehouse) == billed

    # Late usage of September: on no invoice until October is closed, then beside October's lines.
    warehouse.insert_delivery("late", 1, datetime(2026, 10, 20), usage("late", "2026-09-30", 1_000_000, "cus_001"))
    build(warehouse, AFTER_OCTOBER, *CLOSING)
    pending = warehouse.query(
        "select customer_id, cause, adjustment_status, corrects_run_id, sum(event_count) "
        "from marts.fct_pending_adjustments group by all"
    )
    assert [row[:4] for row in pending] == [("cus_001", "usage", "ready", "2026-09.1")]
    drafts = warehouse.query(
        "select distinct invoice_id, line_state from marts.fct_invoice_lines where entry_kind = 'adjustment'"
    )
    assert drafts == [("cus_001/2026-10/USD", "draft")]
    october = close(warehouse, "2026-10")
    assert october.adjustments > 0
    assert warehouse.query("select count(*) from marts.fct_pending_adjustments") == [(0,)]
    assert set(billed) < set(ledger(warehouse))
    assert warehouse.query(
        "select distinct invoice_id, original_billing_period, corrects_run_id, line_state from marts.fct_invoice_lines "
        "where entry_kind = 'adjustment'"
    ) == [("cus_001/2026-10/USD", "2026-09", "2026-09.1", "closed")]
    assert ("adjusted",) in warehouse.query(
        "select distinct invoice_state from marts.fct_invoices where billing_period = '2026-09'"
    )

    # A corrected price of the past waits for somebody to approve it.
    before = ledger(warehouse)

    def dearer(row: dict[str, str]) -> None:
        if row["charge_code"] == "usd-context":
            row["unit_amount"] = "0.00001"

    change_seed(project_copy, "pricing/charge_tiers.csv", dearer)
    with pytest.raises(CloseRefused, match="seeds have changed since the last build"):
        close(warehouse, "2026-10", adjustments_only=True)
    build(warehouse, AFTER_OCTOBER, *CLOSING)
    waiting = warehouse.query(
        "select rerating_id, adjustment_status, cause, amount_minor from marts.fct_pending_adjustments where amount_minor <> 0"
    )
    assert {row[1:3] for row in waiting} == {("needs_approval", "re_rating")}
    with connect(warehouse.settings) as connection:
        listed = list_pending_adjustments(connection, customer_id="cus_000")
    assert any("re_rating, needs_approval" in describe_adjustment(adjustment) for adjustment in listed)
    to_approve = {row.split(",")[0] for row in rows_to_approve(listed)}
    assert to_approve
    assert to_approve <= {row[0] for row in waiting}
    held = close(warehouse, "2026-10", adjustments_only=True)
    assert (held.lines, held.run_id) == (0, None)
    assert held.waiting >= len(waiting)
    assert ledger(warehouse) == before
    approvals = project_copy / "seeds" / "policy" / "rerating_approvals.csv"
    approvals.write_text(
        approvals.read_text()
        + "".join(f"{key},finance,2026-11-03,price list error\n" for key in sorted({row[0] for row in waiting}))
    )
    build(warehouse, AFTER_OCTOBER, *CLOSING)
    rerated = close(warehouse, "2026-10", adjustments_only=True)
    assert rerated.run_id == "2026-10.2"
    assert sum(rerated.totals_minor.values()) == sum(row[3] for row in waiting)
    assert {row[0][-2:] for row in warehouse.query(
        "select invoice_id from marts.fct_invoices where run_id = '2026-10.2'"
    )} == {"/2"}  # fmt: skip
    assert warehouse.query("select count(*) from marts.fct_pending_adjustments") == [(0,)]
    # And the new price is what later usage is compared with.
    warehouse.insert_delivery("later", 1, AFTER_OCTOBER, usage("later", "2026-09-30", 1_000_000))
    build(warehouse, AFTER_OCTOBER, *CLOSING)
    assert warehouse.query("select distinct cause, adjustment_status from marts.fct_pending_adjustments") == [
        ("usage", "ready")
    ]
    assert warehouse.query(
        """
        select
            (select sum(amount_minor) from ledger.billing_ledger)
            + (select sum(amount_minor) from marts.fct_pending_adjustments)
            = (select sum(amount_minor) from marts.fct_rated_lines where billing_period in ('2026-09', '2026-10'))
        """
    ) == [(True,)]


def test_what_must_not_be_closed(two_months: Warehouse) -> None:
    warehouse = two_months
    with pytest.raises(CloseRefused, match=r"2026-10 ends at 2026-11-01 .*build again after its end"):
        close(warehouse, "2026-10", forced_reason="force does not end a month")
    with pytest.raises(CloseRefused, match="Not in dim_customers: nobody"):
        close(warehouse, "2026-09", customers=["nobody"])
    with pytest.raises(MeteringError, match="'2026-9' is no billing period"):
        close(warehouse, "2026-9")
    for beyond in ("9999-12", "0000-01"):
        with pytest.raises(MeteringError, match=f"'{beyond}' is no billing period"):
            close(warehouse, beyond)
    with pytest.raises(CloseRefused, match=r"2026-09 was not closed for any .* metering close --period 2026-09 closes"):
        close(warehouse, "2026-09", adjustments_only=True)
    with pytest.raises(MeteringError, match="needs its reason"):
        close(warehouse, "2026-09", forced_reason=" ")
    # Some of the customers first, then the others.
    first = close(warehouse, "2026-09", customers=["cus_000"])
    assert {row[0] for row in warehouse.query("select customer_id from ledger.billing_ledger")} == {"cus_000"}
    rest = close(warehouse, "2026-09")
    assert (first.run_id, rest.run_id, first.customers) == ("2026-09.1", "2026-09.2", 1)
    assert warehouse.query(
        "select count(*), count(distinct rated_line_id) from ledger.billing_ledger"
    ) == warehouse.query("select count(*), count(*) from marts.fct_rated_lines where billing_period = '2026-09'")

    # Within grace, and with a red guard: only by force, with the reason recorded.
    warehouse.insert_delivery("bad", 1, datetime(2026, 10, 5), {**llm_request("bad"), "customer_id": "nobody"})
    build(warehouse, datetime(2026, 11, 1, 15), *CLOSING)
    with pytest.raises(GuardBreach, match="ingestion_error_rate"):
        close(warehouse, "2026-10")
    warehouse.query("delete from raw.usage_events where batch_id = 'bad'")
    build(warehouse, datetime(2026, 11, 1, 15), *CLOSING, full_refresh=True)
    with pytest.raises(CloseRefused, match=r"within grace until 2026-11-02"):
        close(warehouse, "2026-10")
    forced = close(warehouse, "2026-10", forced_reason="the auditor waits")
    assert warehouse.query("select run_id, forced_reason from ledger.billing_runs where forced_reason is not null") == [
        (forced.run_id, "the auditor waits")
    ]


@pytest.mark.parametrize("moment", ["run_guards", "_append"])
def test_another_build_that_begins_meanwhile_ends_the_close(
    two_months: Warehouse, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """While guards are judged, or before the lines are read: as on Snowflake, where builds and closes run side by side."""
    original = getattr(close_module, moment)

    def begin_a_build(connection: connections.Warehouse, *arguments: Any) -> Any:
        connection.execute(
            "insert into ops.build_log (invocation_id, step, is_whole, logged_at, as_of, failed_nodes, price_book_hash) "
            "select 'another', step, is_whole, logged_at + interval 1 second, as_of, failed_nodes, price_book_hash "
            "from ops.build_log where step = 'started' order by logged_at desc limit 1"
        )
        return original(connection, *arguments)

    monkeypatch.setattr(close_module, moment, begin_a_build)
    with pytest.raises(CloseRefused, match="Another build has begun or ended meanwhile"):
        close(two_months, "2026-09")
    assert ledger(two_months) == []


def test_a_build_that_begins_between_the_statements_of_a_close_ends_it(
    two_months: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = connections.DuckDBWarehouse.execute

    def begin_a_build(self: Any, sql: str, *arguments: Any) -> Any:
        if "insert into ledger.billing_ledger" in sql:
            original(
                self,
                "insert into ops.build_log (invocation_id, step, is_whole, logged_at, as_of) "
                "values ('another', 'started', true, timestamp '2100-01-01', timestamp '2100-01-01')",
            )
        return original(self, sql, *arguments)

    monkeypatch.setattr(connections.DuckDBWarehouse, "execute", begin_a_build)
    with pytest.raises(CloseRefused, match="Another build has begun or ended meanwhile"):
        close(two_months, "2026-09")
    assert ledger(two_months) == []


def test_seeds_that_change_while_a_close_runs_are_not_what_rated_its_lines(
    two_months: Warehouse, project_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a git pull does while guards are judged: what is recorded of the lines is the price book of their build."""
    rated_with = price_book_hash(project_copy)
    original = close_module.run_guards

    def pull(*arguments: Any) -> Any:
        change_seed(project_copy, "pricing/charge_tiers.csv", lambda row: row.update(unit_amount="7"))
        return original(*arguments)

    monkeypatch.setattr(close_module, "run_guards", pull)
    close(two_months, "2026-09")
    assert price_book_hash(project_copy) != rated_with
    assert two_months.query(
        "select distinct price_book_hash from ledger.billing_ledger union select price_book_hash from ledger.price_books"
    ) == [(rated_with,)]
    with pytest.raises(CloseRefused, match="seeds have changed since the last build"):
        close(two_months, "2026-09")
    assert two_months.query("select distinct price_book_hash from ledger.price_books") == [(rated_with,)]


def test_a_changed_event_schema_needs_an_approval(two_months: Warehouse, project_copy: Path) -> None:
    """Events of a closed month that are valid no more take nothing back by themselves."""
    close(two_months, "2026-09")
    change_seed(
        project_copy,
        "catalog/event_properties.csv",
        lambda row: row.update(maximum="100000") if row["property_name"] == "context_tokens" else None,
    )
    build(two_months, AFTER_OCTOBER, *CLOSING)
    rows = two_months.query(
        "select distinct cause, adjustment_status from marts.fct_pending_adjustments "
        "where original_billing_period = '2026-09' and amount_minor < 0"
    )
    assert rows == [("re_rating", "needs_approval")]


def test_a_customer_who_is_known_after_the_close_is_not_left_behind(two_months: Warehouse, project_copy: Path) -> None:
    warehouse = two_months
    close(warehouse, "2026-09")
    folder = project_copy / "seeds" / "accounts"
    for seed, key in (("customers.csv", "cus_000"), ("subscriptions.csv", "sub_000")):
        lines = (folder / seed).read_text().splitlines()
        copies = [
            line.replace("_000", "_new").replace("2023-11", "2026-09") for line in lines if line.startswith(f"{key},")
        ]
        assert copies
        (folder / seed).write_text("\n".join([*lines, *copies]) + "\n")
    warehouse.insert_delivery("new", 1, datetime(2026, 9, 5), usage("n", "2026-09-04", 200_000, "cus_new"))
    build(warehouse, AFTER_OCTOBER, *CLOSING)
    october = close(warehouse, "2026-10")
    assert october.left_behind == ("2026-09",)
    assert "2026-09 was closed, but not for all who have lines of it" in october.describe()
    again = close(warehouse, "2026-09")
    assert again.customers == 1
    assert warehouse.query(
        "select distinct customer_id from ledger.billing_ledger where run_id = ?", [again.run_id]
    ) == [("cus_new",)]
    assert close(warehouse, "2026-10").left_behind == ()

    # What was billed to one customer is not corrected on the invoice of another.
    change_seed(
        project_copy,
        "accounts/subscriptions.csv",
        lambda row: row.update(customer_id="cus_001") if row["subscription_id"] == "sub_new" else None,
    )
    selection = ("subscriptions", "stg_subscriptions", "assert_subscriptions_keep_their_customer")
    with pytest.raises(project.BuildError):
        project.run_dbt(warehouse.settings, "build", "--select", *selection, quiet=True)


def test_a_build_of_the_past_takes_nothing_back(two_months: Warehouse) -> None:
    """It does not hold what came in later and was billed since, so no close may follow it."""
    warehouse = two_months
    close(warehouse, "2026-09")
    billed = ledger(warehouse)
    build(warehouse, datetime(2026, 10, 2, 20), *CLOSING, full_refresh=True)
    with pytest.raises(CloseRefused, match=r"until 2026-10-02 20:00:00 UTC, the last close until 2026-10-03"):
        close(warehouse, "2026-09", adjustments_only=True)
    assert ledger(warehouse) == billed


def test_what_leaves_a_service_period_as_it_is_changes_no_terms(two_months: Warehouse, project_copy: Path) -> None:
    """A discount on another plan's charge, a later retirement: else late usage would wait for an approval."""
    warehouse = two_months

    def terms() -> set[Row]:
        return set(
            warehouse.query(
                "select plan_code, service_period_id, terms_hash from intermediate.int_service_period_terms "
                "inner join intermediate.int_service_periods using (service_period_id)"
            )
        )

    before = terms()
    with (project_copy / "seeds" / "pricing" / "discounts.csv").open("a") as stream:
        stream.write("eur-again,,,eur-context,percentage,0.1,,,2026-09-01 00:00:00,\n")
    build(warehouse, AFTER_SEPTEMBER, "discounts", "int_service_period_terms")
    discounted = terms()
    assert {plan for plan, _, _ in discounted - before} == {"standard-eur"}

    # A schema version that retires after the grace of September changes October's terms and no earlier ones.
    change_seed(project_copy, "catalog/event_types.csv", lambda row: row.update(retired_at="2026-10-02 12:00:00"))
    build(warehouse, AFTER_SEPTEMBER, "event_types", "stg_event_contracts", "int_service_period_terms")
    months = dict(
        warehouse.query(
            "select service_period_id, billing_period from intermediate.int_service_periods where plan_code <> ''"
        )
    )
    assert {months[period] for _, period, _ in terms() - discounted} == {"2026-10"}


def test_terms_hold_what_flows_in_from_other_service_periods(two_months: Warehouse, project_copy: Path) -> None:
    """Rollover, and a commitment by the days of another plan: else their change would be billed as if it were usage."""
    warehouse = two_months

    def write(seed: str, *rows: str) -> None:
        path = project_copy / "seeds" / seed
        key = rows[0].split(",")[0]
        lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key},")]
        path.write_text("\n".join([*lines, *rows]) + "\n")

    def terms(included: int, committed: int, *select: str) -> set[Row]:
        write(
            "pricing/entitlements.csv",
            "usd-context,,100,none,50,2026-01-01 00:00:00,2026-07-01 00:00:00",
            f"usd-context,,{included},none,50,2026-07-01 00:00:00,2026-08-01 00:00:00",
            "usd-context,,100,none,0,2026-08-01 00:00:00,",
        )
        write(
            "pricing/commitments.csv",
            f"cus-000-monthly,sub_000,USD,{committed},service_period,2026-06-01 00:00:00,2026-06-11 00:00:00",
        )
        build(warehouse, AFTER_SEPTEMBER, *select, "int_service_period_terms")
        return set(
            warehouse.query(
                "select plan_code, strftime(service_period_start_at, '%Y-%m-%d'), terms_hash "
                "from intermediate.int_service_period_terms inner join intermediate.int_service_periods "
                "using (service_period_id) where subscription_id = 'sub_000'"
            )
        )

    write("pricing/plans.csv", "second-usd,second-usd,1,Second,month,USD,A second plan")
    write(
        "accounts/subscriptions.csv",
        "sub_000,cus_000,standard-usd,UTC,,2026-01-01 00:00:00,2026-06-21 00:00:00",
        "sub_000,cus_000,second-usd,UTC,,2026-06-21 00:00:00,2026-07-01 00:00:00",
        "sub_000,cus_000,standard-usd,UTC,,2026-07-01 00:00:00,",
    )
    changed = ("entitlements", "int_included_quantities", "commitments", "int_commitments_due")
    before = terms(100, 250, "+int_price_segments", "+int_service_periods", "+int_credit_grants", *changed)
    after = terms(90, 500, *changed)
    assert {row[:2] for row in after - before} == {
        # The entitlement's own month, and August, into which it rolls over. September gets nothing from August.
        ("standard-usd", "2026-07-01"),
        ("standard-usd", "2026-08-01"),
        # June is trued up on the second plan's service period, although the commitment had ended before it.
        ("standard-usd", "2026-06-01"),
        ("second-usd", "2026-06-21"),
    }


def test_two_closes_at_once_append_once(two_months: Warehouse) -> None:
    """Two sessions of one process, the second inside the first's transaction: one appends, the other is told."""
    warehouse = two_months

    def close_meanwhile(first: connections.Warehouse, second: connections.Warehouse) -> None:
        with second.transaction():
            with first.transaction():
                first.execute("update ledger.close_lock set holder = 'first'")
                second.execute("select count(*) from ledger.billing_ledger")
            second.execute("update ledger.close_lock set holder = 'second'")

    with connect(warehouse.settings) as first, connect(warehouse.settings) as second, pytest.raises(BusyError):
        close_meanwhile(first, second)
    with connect(warehouse.settings) as connection:
        assert connection.execute("select holder from ledger.close_lock").rows == [("first",)]
    # And two processes: DuckDB lets one write.
    with connect(warehouse.settings):
        answer = subprocess.run(
            [Path(sys.executable).with_name("metering"), "close", "--period", "2026-09"],
            env={**os.environ, "METERING_DUCKDB_PATH": str(warehouse.settings.database), "METERING_TARGET": "ci"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert answer.returncode == 1
    assert "cannot be opened" in answer.stderr
    assert close(warehouse, "2026-09").lines > 0


KILLED_CLOSE = """
import os, signal, sys
from pathlib import Path
from orchestration.lib import close, ledger_export
from orchestration.lib.project import Settings
from orchestration.lib.warehouse import DuckDBWarehouse

database, project, step, period = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
calls = 0

def dying(method):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments, **options)
    return call

DuckDBWarehouse.execute = dying(DuckDBWarehouse.execute)
ledger_export.os.replace = dying(os.replace)
close.run_guards = lambda *_: type("Green", (), {"require_passed": lambda self: None})()
close.close_periods(Settings(database=database, target="ci", project=project), [period], progress=lambda _: None)
print("closed after", calls)
"""


def test_a_close_killed_at_any_step_and_run_again_is_one_close(two_months: Warehouse, green_guards: None) -> None:
    """kill -9 before each statement and before the export gets its name. The guards are judged in other tests."""
    warehouse = two_months
    database = warehouse.settings.database
    pristine = database.read_bytes()

    def run(step: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", KILLED_CLOSE, str(database), str(warehouse.settings.project), str(step), "2026-09"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def stamps_apart() -> tuple[list[Row], list[Row], list[Row]]:
        return (
            warehouse.query("select * exclude (closed_at) from ledger.billing_ledger order by line_id"),
            warehouse.query("select * exclude (closed_at) from ledger.billing_runs"),
            warehouse.query("select * from ledger.closed_periods order by all"),
        )

    whole = run(0)
    steps = int(whole.stdout.split()[-1])
    assert steps > 10
    expected = stamps_apart()
    killed = 0
    for step in range(1, steps + 1):
        database.write_bytes(pristine)
        Path(f"{database}.wal").unlink(missing_ok=True)
        for path in warehouse.settings.ledger_exports.iterdir():
            path.unlink()
        died = run(step)
        assert died.returncode == -signal.SIGKILL, died.stderr
        killed += 1
        close_periods(warehouse.settings, ["2026-09"], progress=lambda _: None)
        assert stamps_apart() == expected
        assert [path.name for path in warehouse.settings.ledger_exports.glob("*.parquet")] == ["2026-09.1.parquet"]
    assert killed == steps
