"""The bare-SQL floor of the benchmarks does the same work as the product: equal outcomes, equal lines."""

from __future__ import annotations

from pathlib import Path

from benchmarks.events import write_history, write_increment
from benchmarks.floor import build
from benchmarks.verify import differing_lines, floor_outcomes, product_lines, product_outcomes, rated_lines
from orchestration.lib.project import run_dbt
from tests.integration.conftest import Warehouse

DELIVERIES = 5_000


def test_floor_and_product_agree(warehouse: Warehouse, tmp_path: Path) -> None:
    files = write_history(tmp_path / "events", DELIVERIES, per_file=DELIVERIES // 2)
    files.append(write_increment(tmp_path / "events", 0, DELIVERIES, 1_000))
    floor = tmp_path / "floor.duckdb"
    stages = build(floor, files, "1GB")
    warehouse.land(*files)
    # Without data tests, which the other tests run: this one compares two results.
    run_dbt(
        warehouse.settings,
        *("build", "--exclude-resource-type", "test", "--exclude-resource-type", "unit_test"),
        quiet=True,
    )

    assert list(stages) == ["land", "judge and count once", "aggregate", "rate", "checkpoint"]
    outcomes = floor_outcomes(floor)
    assert outcomes == product_outcomes(warehouse.settings.database)
    assert outcomes.deliveries == DELIVERIES + 1_000
    assert outcomes.is_conserved
    assert min(outcomes.accepted, outcomes.duplicates, outcomes.rejected, outcomes.conflicts) > 0

    lines = rated_lines(floor)
    assert differing_lines(lines, product_lines(warehouse.settings.database)) == []
    # Every charge of the sample book that rates usage, in every currency.
    assert len({charge_code for _, charge_code, *_ in lines}) == 24
    assert {price_version for _, charge_code, price_version, *_ in lines if charge_code == "usd-users"} == {1, 2}


def test_differences_are_seen(tmp_path: Path) -> None:
    floor = tmp_path / "floor.duckdb"
    build(floor, write_history(tmp_path / "events", 500), "1GB")
    lines = dict(rated_lines(floor))
    changed = dict(lines)
    first, second, *_ = lines
    amount, event_count = changed[first]
    changed[first] = (amount + 1, event_count)
    del changed[second]
    assert differing_lines(lines, changed) == sorted([first, second])
