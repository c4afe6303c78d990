"""Guards: green on good data, and a breach lets nothing reach Stripe."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestration import cli
from orchestration.lib import guards, sync
from orchestration.lib.demo_events import DemoData, write_demo_data
from orchestration.lib.guards import GuardBreach, run_guards
from orchestration.lib.landing import land_independent_totals
from orchestration.lib.project import MeteringError, run_dbt
from orchestration.lib.stripe_lock import hold_sync_lock
from orchestration.lib.stripe_readback import item_id_of, list_lines
from orchestration.lib.stripe_target import open_stripe_target
from orchestration.lib.sync import guarded_sync
from orchestration.lib.warehouse import Warehouse as Connection
from orchestration.lib.warehouse import connect
from tests.integration.conftest import Warehouse

MEASUREMENTS = "+fct_guard_measurements"


@pytest.fixture
def demo(warehouse: Warehouse, tmp_path: Path) -> DemoData:
    """The demo's events landed; 9 malformed deliveries of 12,000 stay below the error threshold."""
    data = write_demo_data(tmp_path / "demo", events=12_000)
    warehouse.land(*data.event_files)
    return data


def land_totals(warehouse: Warehouse, path: Path) -> None:
    with connect(warehouse.settings) as connection:
        land_independent_totals(connection, path, progress=lambda _: None)


def objects_in_stripe(warehouse: Warehouse) -> int:
    with open_stripe_target({}, warehouse.settings.stripe_state) as target:
        return sum(
            len(listing.data)
            for listing in (
                target.client.v1.customers.list(),
                target.client.v1.invoices.list(),
                target.client.v1.invoice_items.list(),
            )
        )


def run_cli(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setenv("METERING_DUCKDB_PATH", str(warehouse.settings.database))
    monkeypatch.setenv("METERING_TARGET", "ci")
    monkeypatch.delenv("STRIPE_API_KEY", raising=False)
    monkeypatch.setattr("sys.argv", ["metering", *arguments])
    try:
        cli.main()
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_breach_blocks_until_it_is_mended_or_accepted(
    warehouse: Warehouse,
    demo: DemoData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """An independent total that is 2 % off: the check fails, nothing reaches Stripe, the exit code is not 0."""
    with demo.independent_totals.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    seeded = next(row for row in rows if row["metric_code"] == "context_tokens" and row["customer_id"] == "cus_001")
    true_quantity = Decimal(seeded["quantity"])
    seeded["quantity"] = str((true_quantity / Decimal("0.98")).quantize(Decimal(1)))
    breached = tmp_path / "breached.csv"
    with breached.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    land_totals(warehouse, breached)
    warehouse.build_models()
    warehouse.count_as_whole()

    with connect(warehouse.settings) as connection:
        report = run_guards(connection, warehouse.settings.data_docs)
    outcomes = {outcome.guard_code: outcome for outcome in report.outcomes}
    assert not report.passed
    assert {code: outcome.passed for code, outcome in outcomes.items()} == {
        "accuracy": False,
        "dropped_events": True,
        "ingestion_error_rate": True,
        "stripe_amount": True,
        "stripe_ratio": True,
    }
    assert outcomes["accuracy"].breach_count == 1
    ((subject, measured, accepted_up_to),) = outcomes["accuracy"].breaches
    assert subject.startswith("context_tokens|cus_001|")
    assert measured == pytest.approx(0.02, abs=0.0001)
    assert accepted_up_to is None
    assert report.data_docs.exists()
    pages = {page.parts[-4] for page in report.data_docs.parent.glob("validations/*/*/*/*.html")}
    assert pages == outcomes.keys()

    with pytest.raises(GuardBreach, match=r"accuracy.*1 in breach"):
        guarded_sync(warehouse.settings, billing_period=None, progress=lambda _: None)
    assert run_cli(warehouse, monkeypatch, "check") == 1
    assert run_cli(warehouse, monkeypatch, "sync") == 1
    assert "context_tokens|cus_001|" in capfd.readouterr().err
    assert objects_in_stripe(warehouse) == 0
    assert warehouse.query("select * from ops.stripe_sync_log") == []

    # The right total, received later, takes the place of the wrong one.
    land_totals(warehouse, demo.independent_totals)
    warehouse.build_models()
    warehouse.count_as_whole()
    assert run_cli(warehouse, monkeypatch, "check") == 0
    assert run_cli(warehouse, monkeypatch, "close", "--period", "2026-09") == 0

    # A build that begins when all guards were green replaces seeds that the outboxes are views of.
    def lock_when_a_build_has_begun(connection: Connection, *arguments: Any, **options: Any) -> Any:
        connection.execute(
            "insert into ops.build_log (invocation_id, step, is_whole, logged_at, as_of) "
            "select 'another', 'started', false, max(logged_at) + interval 1 second, max(as_of) from ops.build_log"
        )
        return hold_sync_lock(connection, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sync, "hold_sync_lock", lock_when_a_build_has_begun)
        assert run_cli(warehouse, monkeypatch, "sync", "--period", "2026-09") == 1
    assert "Another build has begun or ended meanwhile. Nothing was sent" in capfd.readouterr().err
    assert objects_in_stripe(warehouse) == 0
    warehouse.query("delete from ops.build_log where invocation_id = 'another' returning 1")
    assert run_cli(warehouse, monkeypatch, "sync", "--period", "2026-09") == 0
    assert objects_in_stripe(warehouse) > 0
    sent = warehouse.query("select count(*) from ops.stripe_sync_log where step = 'confirmed'")
    assert run_cli(warehouse, monkeypatch, "sync", "--period", "2026-09") == 0
    assert warehouse.query("select count(*) from ops.stripe_sync_log where step = 'confirmed'") == sent

    # What happens in Stripe behind our back: an item deleted, one doubled, one that is not ours.
    assert run_cli(warehouse, monkeypatch, "reconcile") == 0
    assert "invoices agree with Stripe, 0 red" in capfd.readouterr().out
    [(invoice_id, total)] = warehouse.query(
        "select invoice_id, ledger_amount_minor from marts.fct_stripe_reconciliation order by ledger_amount_minor desc limit 1"
    )
    items = tamper_with(warehouse, invoice_id)
    assert run_cli(warehouse, monkeypatch, "reconcile") == 1
    out = capfd.readouterr().out
    for finding in (f"doubled {items['doubled']}", f"foreign {items['foreign']}", f"missing {items['missing']}"):
        assert finding in out
    status, difference = warehouse.query(
        "select reconciliation_status, difference_minor from marts.fct_stripe_reconciliation where invoice_id = ?",
        [invoice_id],
    )[0]
    assert (status, difference) == ("red", int(items["difference"]))
    assert total > 0
    assert warehouse.query("select count(distinct readback_id) from ops.stripe_readback") == [(2,)]
    run_dbt(warehouse.settings, "run", "--select", "fct_guard_measurements", quiet=True)
    with connect(warehouse.settings) as connection:
        after = {
            outcome.guard_code: outcome for outcome in run_guards(connection, warehouse.settings.data_docs).outcomes
        }
    assert not after["stripe_ratio"].passed
    assert invoice_id in after["stripe_ratio"].breaches[0][0]


def tamper_with(warehouse: Warehouse, invoice_id: str) -> dict[str, str]:
    """Delete the smallest item of an invoice, double the largest, and add one that the ledger does not know."""
    with open_stripe_target({}, warehouse.settings.stripe_state) as target:
        (invoice,) = [
            invoice
            for invoice in target.client.v1.invoices.list({"limit": 100}).auto_paging_iter()
            if invoice.metadata is not None and invoice.metadata["metering_invoice_id"] == invoice_id
        ]
        lines = sorted(list_lines(target.client, invoice.id), key=lambda line: line.amount)
        missing, doubled = lines[0], lines[-1]
        target.client.v1.invoice_items.delete(item_id_of(missing))
        placed = {"customer": str(invoice.customer), "invoice": invoice.id, "currency": invoice.currency}
        target.client.v1.invoice_items.create(
            {**placed, "amount": doubled.amount, "metadata": doubled.metadata.to_dict()}  # type: ignore[typeddict-item]
        )
        foreign = target.client.v1.invoice_items.create({**placed, "amount": 5})  # type: ignore[typeddict-item]
        return {
            "missing": missing.metadata["metering_line_id"],
            "doubled": doubled.metadata["metering_line_id"],
            "foreign": foreign.id,
            "difference": str(doubled.amount - missing.amount + 5),
        }


def test_rejected_deliveries_above_the_threshold_block(
    warehouse: Warehouse, demo: DemoData, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.land_lines(["{broken"] * 10)
    warehouse.build_models(MEASUREMENTS)
    warehouse.count_as_whole()
    assert run_cli(warehouse, monkeypatch, "check") == 1
    assert run_cli(warehouse, monkeypatch, "sync") == 1
    assert objects_in_stripe(warehouse) == 0


def test_a_delivery_that_is_in_the_file_and_not_in_the_raw_table_blocks(warehouse: Warehouse, demo: DemoData) -> None:
    warehouse.query("delete from raw.usage_events where line_number = 1 returning 1")
    warehouse.build_models(MEASUREMENTS)
    with connect(warehouse.settings) as connection:
        report = run_guards(connection, warehouse.settings.data_docs)
    assert [outcome.guard_code for outcome in report.outcomes if not outcome.passed] == ["dropped_events"]


def test_an_accepted_breach_does_not_block_and_a_missing_threshold_does(warehouse: Warehouse, demo: DemoData) -> None:
    warehouse.land_lines(["{broken"] * 100)
    warehouse.build_models(MEASUREMENTS)
    # As rows of guard_exceptions.csv would: one with a limit below the breach, then one above it.
    warehouse.query(
        "update marts.fct_guard_measurements set accepted_up_to = 0.001 where guard_code = 'ingestion_error_rate' returning 1"
    )
    with connect(warehouse.settings) as connection:
        report = run_guards(connection, warehouse.settings.data_docs)
    assert not report.passed
    assert "(accepted up to 0.001)" in "".join(outcome.describe() for outcome in report.outcomes)
    warehouse.query(
        "update marts.fct_guard_measurements set exception_reason = 'known' where guard_code = 'ingestion_error_rate' returning 1"
    )
    with connect(warehouse.settings) as connection:
        assert run_guards(connection, warehouse.settings.data_docs).passed
        connection.execute("delete from seeds.guard_thresholds where guard_code = 'dropped_events'")
        connection.execute(
            "update marts.fct_guard_measurements set threshold = null, is_breach = true where guard_code = 'dropped_events'"
        )
        report = run_guards(connection, warehouse.settings.data_docs)
    assert [outcome.guard_code for outcome in report.outcomes if not outcome.passed] == ["dropped_events"]


def test_nothing_measured_is_a_breach_where_it_is_required(warehouse: Warehouse) -> None:
    warehouse.build_models(MEASUREMENTS)
    with connect(warehouse.settings) as connection:
        report = run_guards(connection, warehouse.settings.data_docs)
    assert {outcome.guard_code: outcome.passed for outcome in report.outcomes} == {
        "accuracy": True,
        "dropped_events": False,
        "ingestion_error_rate": False,
        # Nothing was closed, so nothing was sent that Stripe could have otherwise.
        "stripe_amount": True,
        "stripe_ratio": True,
    }


def test_data_docs_are_replaced_whole(tmp_path: Path) -> None:
    data_docs = tmp_path / "data_docs"
    for content in ("first", "second"):
        new = tmp_path / content / "new"
        new.mkdir(parents=True)
        (new / "index.html").write_text(content)
        guards._replace(data_docs, new)
        assert [path.name for path in data_docs.iterdir()] == ["index.html"]
        assert (data_docs / "index.html").read_text() == content
        assert not new.exists()
    (tmp_path / "file").touch()
    with pytest.raises(MeteringError, match=r"file/data_docs: the Data Docs cannot be replaced: .*Remove the folder"):
        guards._replace(tmp_path / "file" / "data_docs", data_docs)


def test_a_failed_or_unfinished_build_blocks(warehouse: Warehouse, demo: DemoData) -> None:
    with pytest.raises(MeteringError, match="Nothing has been built yet"):
        guarded_sync(warehouse.settings, billing_period=None, progress=lambda _: None)
    warehouse.build_models(MEASUREMENTS)
    warehouse.count_as_whole()
    run_dbt(warehouse.settings, "run", "--select", "int_numbers", quiet=True)
    with pytest.raises(MeteringError, match="built or tested only a part"):
        guarded_sync(warehouse.settings, billing_period=None, progress=lambda _: None)
    warehouse.query("delete from ops.build_log where not is_whole returning 1")
    # A build that had begun before ended after this one had begun: what it wrote last is among the tables.
    warehouse.query(
        "insert into ops.build_log (invocation_id, step, is_whole, logged_at, as_of, failed_nodes) "
        "select 'another', 'finished', true, logged_at, as_of, 0 from ops.build_log where step = 'finished' returning 1"
    )
    with pytest.raises(MeteringError, match=r"Another build ended after the last, .*, had begun.*build again"):
        guarded_sync(warehouse.settings, billing_period=None, progress=lambda _: None)
    warehouse.query("delete from ops.build_log where invocation_id = 'another' returning 1")
    warehouse.query("update ops.build_log set failed_nodes = 2 where step = 'finished' returning 1")
    with pytest.raises(MeteringError, match="failed in 2 nodes"):
        guarded_sync(warehouse.settings, billing_period=None, progress=lambda _: None)
    warehouse.query("delete from ops.build_log where step = 'finished' returning 1")
    with pytest.raises(MeteringError, match="did not end"):
        guarded_sync(warehouse.settings, billing_period=None, progress=lambda _: None)
