"""Builds beside the present: another price book over real history, marts as known at a past instant, billing runs built again."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestration.lib.past import rebuild_as_of, reproduce_runs
from orchestration.lib.project import PROJECT_DIR, BuildError, MeteringError
from orchestration.lib.scenario import drop_scenario, list_prefixes, name_from, scenario_prefix
from orchestration.lib.warehouse import connect, require_successful_build
from orchestration.lib.what_if import WhatIf, what_if
from orchestration.lib.what_if_report import describe
from tests.integration.conftest import Row, Warehouse
from tests.integration.test_close import AFTER_OCTOBER, AFTER_SEPTEMBER, build, close, usage

Rows = list[dict[str, str]]

ITEMS = """
    select customer_id, line_type, coalesce(commitment_code, credit_grant_code, charge_code), billing_period, currency_code,
        sum(billable_quantity), sum(amount_minor)
    from marts.fct_rated_lines where billing_period between '2026-09' and '2026-10' group by 1, 2, 3, 4, 5 order by all
"""


def write_seed(source: Path, target: Path, change: Callable[[Rows], Rows]) -> None:
    with source.open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows = change(list(reader))
        fields = list(reader.fieldnames or [])
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def with_row(rows: Rows, code: str, **changes: str) -> Rows:
    [row] = [row for row in rows if row["charge_code"] == code and row.get("tier_number", "1") == "1"]
    return [*rows, {**row, **changes}]


def new_charges(rows: Rows) -> Rows:
    """A price that begins at 10:07:33, a minimum that was not there, a charge that is no more."""
    for row in rows:
        if row["charge_code"] == "usd-context":
            row["valid_to"] = "2026-10-10 10:07:33"
        if row["charge_code"] == "usd-longest-context":
            row["minimum_amount"] = "4"
    kept = [row for row in rows if row["charge_code"] != "usd-requests"]
    return with_row(kept, "usd-context", price_version="2", valid_from="2026-10-10 10:07:33", valid_to="")


def new_tiers(rows: Rows) -> Rows:
    kept = [row for row in rows if row["charge_code"] != "usd-requests"]
    return with_row(kept, "usd-context", price_version="2", up_to="", unit_amount="0.0001")


def prefixes(warehouse: Warehouse) -> list[str]:
    with connect(warehouse.settings) as connection:
        return list_prefixes(connection)


def present(warehouse: Warehouse) -> tuple[dict[str, list[Row]], list[Row]]:
    """All that a scenario must leave as it is."""
    marts = warehouse.marts()
    del marts["fct_what_if"]
    return marts, warehouse.query("select * from ops.build_log order by all")


def run_killed(warehouse: Warehouse, price_book: Path) -> None:
    """The command, killed as soon as it has made its first table and begun to build."""
    environment = {
        **os.environ,
        "METERING_DUCKDB_PATH": str(warehouse.settings.database),
        "METERING_TARGET": "ci",
    }
    process = subprocess.Popen(
        [Path(sys.executable).with_name("metering"), "whatif", price_book],
        cwd=PROJECT_DIR, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any(line.startswith("rating with") for line in process.stderr)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()


def test_what_if_equals_a_real_change(
    warehouse_of_copy: Warehouse, project_copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """To the cent, with a price that splits an hour; the present stays as it is, whatever becomes of the scenario."""
    warehouse = warehouse_of_copy
    for day in range(1, 29):
        for month in (9, 10):
            event = usage(f"{month}-{day}", f"2026-{month:02}-{day:02}", 20_000 * day, f"cus_00{day % 4}")
            warehouse.insert_delivery(f"month {month}", day, datetime(2026, month, day, 11), event)
    for minute in (6, 9):
        event = usage(f"minute-{minute}", "2026-10-10", 70_000)
        event["occurred_at"] = f"2026-10-10T10:{minute:02}:00Z"
        warehouse.insert_delivery("split hour", minute, datetime(2026, 10, 10, 11), event)
    build(warehouse, AFTER_OCTOBER)
    before, items_before = present(warehouse), warehouse.query(ITEMS)

    pricing = project_copy / "seeds" / "pricing"
    book = tmp_path / "Price book"
    write_seed(pricing / "charges.csv", book / "charges.csv", new_charges)
    write_seed(pricing / "charge_tiers.csv", book / "charge_tiers.csv", new_tiers)
    write_seed(pricing / "discounts.csv", book / "discounts.csv", lambda rows: [])

    def run(folder: Path, **options: Any) -> WhatIf:
        bounds = {"from_period": "2026-09", "to_period": "2026-10", "name": name_from(folder.name), **options}
        return what_if(warehouse.settings, folder, progress=lambda _: None, **bounds)

    # Killed in the middle: something is left behind, and harms nobody.
    run_killed(warehouse, book)
    assert prefixes(warehouse) == ["whatif_price_book__"]
    assert present(warehouse) == before

    # A row that breaks a rule.
    bad = tmp_path / "bad"
    write_seed(
        book / "charge_tiers.csv", bad / "charge_tiers.csv", lambda rows: [{**rows[0], "unit_amount": "-1"}, *rows[1:]]
    )
    with pytest.raises(BuildError):
        run(bad)
    printed = capfd.readouterr()
    assert "seeds/pricing/charge_tiers.csv: " in printed.err
    assert "charge_code=usd-context, " in printed.err
    assert printed.out == ""
    assert prefixes(warehouse) == ["whatif_price_book__"]
    assert present(warehouse) == before

    found = run(book, keep=True)
    assert present(warehouse) == before
    now = [
        (d.customer_id, d.line_type, d.item_code, d.billing_period, d.currency, d.quantity_now, d.amount_minor_now)
        for d in found.differences
        if d.amount_minor_now is not None
    ]
    assert sorted(now) == items_before
    then = [
        (d.customer_id, d.line_type, d.item_code, d.billing_period, d.currency, d.quantity_then, d.amount_minor_then)
        for d in found.differences
        if d.amount_minor_then is not None
    ]
    recorded = warehouse.query(
        "select change_type, count(*), sum(difference_amount_minor) from marts.fct_what_if "
        "where scenario_name = 'price_book' and price_book_hash is not null group by 1 order by 1"
    )
    assert [row[0] for row in recorded] == ["changed", "gone", "new", "unchanged"]
    assert sum(row[1] for row in recorded) == len(found.differences)
    assert sum(row[2] for row in recorded) == sum(d.difference_minor for d in found.differences)

    table = describe(found, "table")
    assert "minimum usd-longest-context" in table
    assert "credit cus-001-prepaid" in table
    assert "commitment cus-000-monthly" in table
    # Every currency adds up by itself.
    for currency in ("USD", "EUR"):
        of_currency = [d for d in found.differences if d.currency == currency]
        total = Decimal(sum(d.amount_minor_then or 0 for d in of_currency)).scaleb(-2)
        assert f"| {currency} | " in describe(found, "markdown")
        assert f" | {total:,.2f} | " in describe(found, "markdown")
    lines = list(csv.DictReader(describe(found, "csv").splitlines()))
    assert len(lines) == sum(d.is_changed for d in found.differences)

    # It was kept, and goes when it is told to.
    assert found.schemas == "whatif_price_book__"
    assert warehouse.query("select count(*) from whatif_price_book__marts.fct_rated_lines") != [(0,)]
    with pytest.raises(MeteringError, match="kept are: whatif_price_book__"):
        drop_scenario(warehouse.settings, "whatif_price__")
    assert "whatif_price_book__marts" in drop_scenario(warehouse.settings, "whatif_price_book__")
    assert prefixes(warehouse) == []

    # The same change for real.
    for path in book.iterdir():
        shutil.copy(path, pricing)
    warehouse.build_models(as_of=AFTER_OCTOBER.isoformat(sep=" "), full_refresh=True)
    assert sorted(then) == warehouse.query(ITEMS) != items_before


def test_a_price_book_that_cannot_be_one_is_refused(warehouse: Warehouse, tmp_path: Path) -> None:
    """Before anything is read or built, in plain words."""
    present = PROJECT_DIR / "seeds" / "pricing"

    def refuse(message: str, **options: Any) -> None:
        bounds = {"from_period": None, "to_period": None, "name": "x", **options}
        with pytest.raises(MeteringError, match=message):
            what_if(warehouse.settings, tmp_path / "book", progress=lambda _: None, **bounds)
        assert not warehouse.settings.database.exists()

    book = tmp_path / "book"
    book.mkdir()
    refuse(r"book has no file of a price book. Known are: charge_tiers\.csv, charges\.csv")
    (book / "prices.csv").write_text("a\n")
    refuse(r"prices\.csv is no file of a price book")
    (book / "prices.csv").rename(book / "plans.xlsx")
    refuse(r"plans\.xlsx is no file of a price book")
    (book / "plans.xlsx").rename(book / "plans.csv")
    refuse(r"plans\.csv has unknown columns: a\. Known are: plan_code")
    (book / "plans.csv").write_text("plan_code,plan_name\n")
    refuse(r"plans\.csv lacks columns: plan_family")
    (book / "plans.csv").write_text("")
    refuse(r"plans\.csv is empty")
    header = (present / "plans.csv").read_text().splitlines()[0]
    (book / "plans.csv").write_text(f"{header},plan_code\n")
    refuse(r"plans\.csv names a column twice")
    (book / "plans.csv").write_text(f"{header}\n")
    refuse("'2026-13' is no billing period", from_period="2026-13")
    refuse("'2026-1' is no billing period", to_period="2026-1")
    refuse("the first billing period lies after the last", from_period="2026-10", to_period="2026-09")

    for name in ("", "a-b", "a__b", "_a", "A", "x" * 61):
        with pytest.raises(MeteringError, match="cannot be the name of a scenario"):
            scenario_prefix("whatif", name)
    assert [name_from(text) for text in ("Prices 2027 (draft)", "--", "ä")] == [
        "prices_2027_draft",
        "unnamed",
        "unnamed",
    ]


def test_past_states_come_back(warehouse_of_copy: Warehouse, project_copy: Path) -> None:
    """Two closes, with late usage and new prices between: each run to the cent, and all marts as they were after the first."""
    warehouse = warehouse_of_copy
    for day in range(1, 29):
        event = usage(f"s{day}", f"2026-09-{day:02}", 200_000, f"cus_00{day % 4}")
        warehouse.insert_delivery("september", day, datetime(2026, 9, day, 11), event)

    def at(instant: datetime) -> None:
        """What was just built and closed happened then."""
        with connect(warehouse.settings) as connection:
            for table, column in (
                ("ops.build_log", "logged_at"),
                ("ledger.price_books", "recorded_at"),
                ("ledger.billing_runs", "closed_at"),
                ("ledger.billing_ledger", "closed_at"),
                ("ledger.closed_terms", "recorded_at"),
            ):
                connection.execute(
                    f"update {table} set {column} = cast(? as timestamp) where {column} > cast(? as timestamp)",
                    [str(instant), str(instant)],
                )

    build(warehouse, AFTER_SEPTEMBER)
    close(warehouse, "2026-09", forced_reason="test data has no totals")
    at(AFTER_SEPTEMBER + timedelta(hours=1))
    known_then = warehouse.marts()

    late = usage("late", "2026-09-30", 1_000_000, "cus_001")
    warehouse.insert_delivery("late", 1, datetime(2026, 10, 20), late)
    tiers = project_copy / "seeds" / "pricing" / "charge_tiers.csv"
    charges = project_copy / "seeds" / "pricing" / "charges.csv"

    def from_october(rows: Rows) -> Rows:
        for row in rows:
            if row["charge_code"] == "usd-platform":
                row["valid_to"] = "2026-10-01 00:00:00"
        return with_row(rows, "usd-platform", price_version="2", valid_from="2026-10-01 00:00:00", valid_to="")

    write_seed(charges, charges, from_october)
    write_seed(tiers, tiers, lambda rows: with_row(rows, "usd-platform", price_version="2", unit_amount="33"))
    build(warehouse, AFTER_OCTOBER)
    october = close(warehouse, "2026-10", forced_reason="test data has no totals")
    assert october.adjustments > 0
    # October's fee was billed in advance, with September: its new price waits for an approval.
    [(waiting,)] = warehouse.query("select count(*) from marts.fct_pending_adjustments")
    assert waiting > 0
    at(AFTER_OCTOBER + timedelta(hours=1))
    after = warehouse.marts()

    # Seeds and code that come later: a price of September is corrected, and a seed is there that no earlier build knew.
    write_seed(
        tiers,
        tiers,
        lambda rows: [{**row, "unit_amount": "0.5"} if row["charge_code"] == "usd-users" else row for row in rows],
    )
    with connect(warehouse.settings) as connection:
        connection.execute("delete from ledger.price_books where seed = 'policy/rerating_approvals.csv'")

    # Somebody has changed the ledger, by one cent in one line.
    def change_ledger(minor: int) -> None:
        with connect(warehouse.settings) as connection:
            connection.execute(
                "update ledger.billing_ledger set amount_minor = amount_minor + ? "
                "where line_id = (select min(line_id) from ledger.billing_ledger where run_id = '2026-10.1')",
                [minor],
            )

    change_ledger(1)
    said: list[str] = []
    september, october_again = reproduce_runs(warehouse.settings, None, progress=said.append)
    change_ledger(-1)
    assert (september.run_id, september.differences, september.waiting) == ("2026-09.1", (), 0)
    assert (october_again.run_id, october_again.waiting) == ("2026-10.1", waiting)
    assert [line.ledger_minor - line.rebuilt_minor for line in october_again.differences] == [1]
    assert f"run 2026-10.1: DIFFERENT in 1 of {october_again.lines} lines" in october_again.describe()
    assert september.lines > 5
    assert f"run 2026-09.1: {september.lines} lines equal" in september.describe()
    assert october_again.lines > 5
    assert "rerating_approvals.csv was not there yet: it is empty" in said
    assert prefixes(warehouse) == []

    past = rebuild_as_of(warehouse.settings, AFTER_SEPTEMBER + timedelta(hours=2), progress=lambda _: None)
    assert past.schemas[-1] == "asof_20261003t020000__staging"
    for name, rows in known_then.items():
        assert warehouse.query(f"select * from asof_20261003t020000__marts.{name} order by all") == rows, name
    assert warehouse.marts() == after
    with connect(warehouse.settings) as connection:
        assert require_successful_build(connection).as_of == AFTER_OCTOBER
    with pytest.raises(MeteringError, match="No successful build had begun by 2026-10-03 00:30:00"):
        rebuild_as_of(warehouse.settings, AFTER_SEPTEMBER + timedelta(minutes=30), progress=lambda _: None)
    with pytest.raises(MeteringError, match="has not passed"):
        rebuild_as_of(warehouse.settings, datetime(2999, 1, 1), progress=lambda _: None)
    with pytest.raises(MeteringError, match="No such marts: fct_nothing"):
        rebuild_as_of(warehouse.settings, AFTER_OCTOBER, marts=["fct_nothing"], progress=lambda _: None)

    with pytest.raises(MeteringError, match=r"no billing run '2026-11\.1'. The ledger has: 2026-09\.1, 2026-10\.1"):
        reproduce_runs(warehouse.settings, "2026-11.1", progress=lambda _: None)
