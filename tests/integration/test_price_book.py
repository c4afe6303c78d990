"""The price book of a build: known by its hash, and its text kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from dbt.cli.main import dbtRunner

from orchestration.lib.price_book import price_book_hash, record_price_book, restore_price_book
from orchestration.lib.project import MeteringError, run_dbt
from orchestration.lib.warehouse import connect
from tests.integration.conftest import Warehouse


def texts(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.csv")}


def dbt_seed(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """dbt's own command, which nobody tells a hash."""
    project = warehouse.settings.project
    monkeypatch.setenv("METERING_DUCKDB_PATH", str(warehouse.settings.database))
    monkeypatch.setenv("METERING_TARGET", "ci")
    command = ["seed", "--select", "plans", "--project-dir", str(project)]
    try:
        assert dbtRunner().invoke(["--quiet", *command, "--profiles-dir", str(project / "profiles")]).success
    finally:
        DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]


def last_build(warehouse: Warehouse) -> tuple[str | None, ...]:
    rows = warehouse.query("select price_book_hash from ops.build_log order by logged_at desc, step limit 2")
    return tuple(row[0] for row in rows)


def test_a_recorded_price_book_comes_back_byte_by_byte(
    warehouse_of_copy: Warehouse, project_copy: Path, tmp_path: Path
) -> None:
    """Also with line ends, quotes and scripts of any kind; recording it again adds nothing, a change adds all of it."""
    plans = project_copy / "seeds" / "pricing" / "plans.csv"
    charges = project_copy / "seeds" / "pricing" / "charges.csv"
    charges.write_bytes(charges.read_bytes().replace(b"\n", b"\r\n") + 'x,"quo""te\\n",ЖЗ 単価\r\n'.encode())
    before = texts(project_copy / "seeds")
    with connect(warehouse_of_copy.settings) as connection:
        first = record_price_book(connection, project_copy)
        assert record_price_book(connection, project_copy) == first == price_book_hash(project_copy)
        plans.write_bytes(plans.read_bytes().replace(b"month", b"quarter", 1))
        second = record_price_book(connection, project_copy)
        assert second != first
        counts = connection.execute("select price_book_hash, count(*) from ledger.price_books group by 1").rows
        assert dict(counts) == {first: len(before), second: len(before)}
        restored = restore_price_book(connection, first, tmp_path / "restored")
        assert texts(tmp_path / "restored") == before
        assert len(restored) == len(before)
        with pytest.raises(MeteringError, match="abc is not in ledger"):
            restore_price_book(connection, "abc", tmp_path / "none")
    plans.write_bytes(b"plan_code\n\xff\n")
    with pytest.raises(MeteringError, match=r"plans.csv is not UTF-8 \(byte 10\)"):
        price_book_hash(project_copy)


def test_a_build_says_its_price_book(
    warehouse_of_copy: Warehouse, project_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metering command and dbt's own agree; above a megabyte, where dbt has no checksum, dbt's own says nothing."""
    run_dbt(warehouse_of_copy.settings, "seed", "--select", "plans", quiet=True)
    digest = price_book_hash(project_copy)
    assert last_build(warehouse_of_copy) == (digest, digest)

    # A file moved, and a line end at its end, are no change of prices.
    (project_copy / "seeds" / "pricing" / "plans.csv").rename(project_copy / "seeds" / "plans.csv")
    discounts = project_copy / "seeds" / "pricing" / "discounts.csv"
    discounts.write_bytes(discounts.read_bytes() + b"\n")
    dbt_seed(warehouse_of_copy, monkeypatch)
    assert last_build(warehouse_of_copy) == (digest, digest)

    # Customers are many. Their rows are not loaded here, so any text will do.
    customers = project_copy / "seeds" / "accounts" / "customers.csv"
    customers.write_bytes(customers.read_bytes() + b"x" * 1024 * 1024)
    dbt_seed(warehouse_of_copy, monkeypatch)
    assert last_build(warehouse_of_copy) == (None, None)
    run_dbt(warehouse_of_copy.settings, "seed", "--select", "plans", quiet=True)
    assert last_build(warehouse_of_copy) == (price_book_hash(project_copy),) * 2 != (digest, digest)
