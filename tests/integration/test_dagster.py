"""The Dagster code location: it loads, its lineage is one, and its jobs run in process."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from orchestration.lib.close import close_periods
from orchestration.lib.demo_events import write_demo_data
from orchestration.lib.project import PROJECT_DIR, ensure_manifest, read_settings
from orchestration.lib.stripe_target import open_stripe_target

RAW = dg.AssetKey(["raw", "usage_events"])
STRIPE = dg.AssetKey(["stripe", "invoice_items"])
READBACK = dg.AssetKey(["stripe", "readback"])
CLOSE = dg.AssetKey(["billing", "closed_period"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A warehouse and a landing folder with the demo's files, in the environment that the definitions read."""
    folder = tmp_path_factory.mktemp("dagster")
    data = write_demo_data(folder / "landing" / "events", events=12_000)
    (folder / "landing" / "totals").mkdir()
    shutil.move(data.independent_totals, folder / "landing" / "totals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METERING_DUCKDB_PATH", str(folder / "metering.duckdb"))
        patch.setenv("METERING_TARGET", "ci")
        patch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
        patch.delenv("STRIPE_API_KEY", raising=False)
        # dbt runs as a process of its own here. It would parse in each, did it not find what one has parsed.
        parsed = ensure_manifest(read_settings()).with_name("partial_parse.msgpack")
        (folder / "target").mkdir()
        shutil.copy(parsed, folder / "target")
        patch.setenv("DBT_TARGET_PATH", str(folder / "target"))
        yield folder


@pytest.fixture(scope="module")
def defs(folder: Path) -> dg.Definitions:
    from orchestration.definitions import defs

    return defs


def test_landing_is_upstream_of_marts_and_stripe_downstream_of_the_guards(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    deliveries = dg.AssetKey(["staging", "stg_event_deliveries"])
    assert RAW in graph.get(deliveries).parent_keys
    measurements = dg.AssetKey(["marts", "fct_guard_measurements"])
    outboxes = {dg.AssetKey(["marts", name]) for name in ("stripe_invoice_items", "stripe_meter_events")}
    assert STRIPE in graph.get(READBACK).parent_keys
    assert set(graph.get(STRIPE).parent_keys) == {*outboxes, measurements, CLOSE}
    assert set(graph.get(CLOSE).parent_keys) == {dg.AssetKey(["marts", "fct_pending_adjustments"]), measurements}
    guards = {
        key.name
        for key in graph.asset_check_keys
        if key.asset_key == dg.AssetKey(["marts", "fct_guard_measurements"]) and graph.get(key).blocking
    }
    with (PROJECT_DIR / "seeds" / "policy" / "guard_thresholds.csv").open(newline="") as thresholds:
        assert {row["guard_code"] for row in csv.DictReader(thresholds)} <= guards
    invariants = {key.name for key in graph.asset_check_keys}
    assert "assert_every_delivery_is_accepted_duplicate_or_rejected" in invariants
    assert "assert_all_usage_is_priced_or_unbilled" in invariants


def test_schedules(defs: dg.Definitions) -> None:
    repository = defs.get_repository_def()
    schedules = {schedule.name: schedule for schedule in repository.schedule_defs}
    assert schedules["hourly_build_schedule"].cron_schedule == "5 * * * *"
    monthly = schedules["monthly_billing_schedule"]
    assert monthly.cron_schedule == "30 13 2 * *"
    from datetime import UTC, datetime

    context = dg.build_schedule_context(scheduled_execution_time=datetime(2026, 11, 2, 13, tzinfo=UTC))
    with dg.DagsterInstance.ephemeral() as instance:
        data = monthly.evaluate_tick(
            dg.build_schedule_context(
                instance=instance,
                scheduled_execution_time=context.scheduled_execution_time,
                repository_def=repository,
            )
        )
    assert [request.partition_key for request in data.run_requests or []] == ["2026-10-01"]


def in_stripe(folder: Path) -> int:
    with open_stripe_target({}, folder / "metering.stripe.sqlite") as target:
        return sum(1 for _ in target.client.v1.invoice_items.list({"limit": 100}).auto_paging_iter())


def verdicts(result: dg.ExecuteInProcessResult, name: str) -> list[bool]:
    return [check.passed for check in result.get_asset_check_evaluations() if check.check_name == name]


def months_to_close(result: dg.ExecuteInProcessResult) -> tuple[bool, object, object]:
    """The verdict of nobody_is_left_behind, the earlier months not closed, and those of them closed for some."""
    [check] = [check for check in result.get_asset_check_evaluations() if check.check_name == "nobody_is_left_behind"]
    names = ("not_closed", "of_these_closed_for_others")
    not_closed, closed_for_others = (check.metadata[name].value for name in names)
    return check.passed, not_closed, closed_for_others


def test_monthly_billing_sends_its_month_once_and_a_breach_sends_nothing(defs: dg.Definitions, folder: Path) -> None:
    job = defs.resolve_job_def("monthly_billing")
    result = job.execute_in_process(partition_key="2026-09-01", raise_on_error=False)
    assert result.success
    assert RAW in {event.asset_key for event in result.get_asset_materialization_events()}
    # August, with the fee of September in it, was never closed: the check says so until it is.
    assert months_to_close(result) == (False, "2026-08", "none")
    close_periods(read_settings(), ["2026-08"], progress=lambda _: None)
    again = job.execute_in_process(partition_key="2026-09-01", asset_selection=[CLOSE])
    assert months_to_close(again) == (True, "none", "none")
    assert verdicts(result, "nothing_is_left_unsent") == [True]
    assert verdicts(result, "stripe_agrees") == [True]
    with duckdb.connect(str(folder / "metering.duckdb")) as connection:
        ((lines, periods),) = connection.execute(
            "select count(*), max(billing_period) from marts.stripe_invoice_items "
            "where hold_reason is null and billing_period = '2026-09'"
        ).fetchall()
    assert lines > 0
    assert periods == "2026-09"
    assert in_stripe(folder) == lines

    # The files have landed: the next run has nothing to land, and a breach keeps it from Stripe.
    totals = folder / "landing" / "totals" / "later.csv"
    totals.write_text(
        "metric_code,customer_id,dimensions,period_start_at,period_end_at,quantity,source\n"
        "requests,cus_000,,2026-09-01T00:00:00Z,2026-10-01T00:00:00Z,1,somebody\n"
    )
    result = job.execute_in_process(partition_key="2026-10-01", raise_on_error=False)
    assert not result.success
    assert STRIPE not in {event.asset_key for event in result.get_asset_materialization_events()}
    failed = [check for check in result.get_asset_check_evaluations() if not check.passed]
    assert [check.check_name for check in failed] == ["accuracy"]
    assert in_stripe(folder) == lines
    with duckdb.connect(str(folder / "metering.duckdb")) as connection:
        ((batches,),) = connection.execute("select count(*) from raw.load_batches").fetchall()
    assert batches == 4

    # What somebody takes out of Stripe is noticed there.
    with open_stripe_target({}, folder / "metering.stripe.sqlite") as target:
        target.client.v1.invoice_items.delete(target.client.v1.invoice_items.list({"limit": 1}).data[0].id)
    result = job.execute_in_process(partition_key="2026-09-01", asset_selection=[READBACK])
    assert verdicts(result, "stripe_agrees") == [False]


def test_telemetry_is_off() -> None:
    home = Path(__file__).parents[2] / "orchestration" / "home" / "dagster.yaml"
    assert "telemetry:\n  enabled: false" in home.read_text()
