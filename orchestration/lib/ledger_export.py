"""Parquet files of the ledger, one for each billing run, beside the warehouse."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import duckdb

from orchestration.lib.project import Progress
from orchestration.lib.warehouse import Result, Warehouse


def export_runs(warehouse: Warehouse, folder: Path, *, progress: Progress) -> list[Path]:
    """Write the lines of each billing run that has no file yet, also of runs whose close died before it got here.

    Args:
        warehouse: an open warehouse with the ledger.
        folder: where the files are, named like the runs; made when it is missing.
        progress: called with a line of text for each file.

    Returns:
        The files that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = warehouse.execute("select run_id from ledger.billing_runs order by closed_at, run_id").rows
    written = []
    for (run_id,) in runs:
        path = folder / f"{run_id}.parquet"
        if path.exists():
            continue
        lines = warehouse.execute("select * from ledger.billing_ledger where run_id = ? order by line_id", [run_id])
        unfinished = path.with_suffix(".unfinished")
        _write_parquet(lines, _column_types(warehouse), unfinished)
        # A file has its name only when it is whole.
        os.replace(unfinished, path)
        written.append(path)
        progress(f"exported {len(lines.rows)} lines of run {run_id} to {path}")
    return written


def _column_types(warehouse: Warehouse) -> dict[str, str]:
    """Types of the ledger's columns in DuckDB's words, by name in lower case."""
    rows = warehouse.execute(
        "select lower(column_name), lower(data_type), numeric_precision, numeric_scale "
        "from information_schema.columns where lower(table_schema) = 'ledger' and lower(table_name) = 'billing_ledger'"
    ).rows
    types = {}
    for name, data_type, precision, scale in rows:
        if data_type.startswith("timestamp"):
            types[name] = "timestamp"
        elif data_type.startswith(("decimal", "number")):
            types[name] = f"decimal({precision}, {scale})"
        elif data_type in ("text", "varchar"):
            types[name] = "varchar"
        else:
            types[name] = data_type
    return types


def _write_parquet(lines: Result, types: dict[str, str], path: Path) -> None:
    with duckdb.connect() as memory:
        columns = ", ".join(f"{name} {types[name]}" for name in lines.columns)
        memory.execute(f"create table lines ({columns})")
        if lines.rows:
            _insert(memory, lines.rows)
        memory.execute("copy lines to ? (format parquet)", [str(path)])


def _insert(memory: duckdb.DuckDBPyConnection, rows: Sequence[tuple[object, ...]], at_once: int = 500) -> None:
    marks = f"({', '.join('?' for _ in rows[0])})"
    for start in range(0, len(rows), at_once):
        chunk = rows[start : start + at_once]
        memory.execute(
            f"insert into lines values {', '.join([marks] * len(chunk))}", [value for row in chunk for value in row]
        )
