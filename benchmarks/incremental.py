"""A fixed increment on histories of different length, and the anti-join of its keys by itself."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb

from benchmarks.events import INCREMENT_DELIVERIES
from benchmarks.history import History
from benchmarks.measure import Measurement, run
from benchmarks.ours import Build

_ANTI_JOIN_REPEATS = 3


@dataclass(frozen=True)
class IncrementalRun:
    """Increments on one history.

    Attributes:
        loads: metering load of each increment.
        builds: dbt build of each increment, without tests.
        anti_join_seconds: of a bare query for those keys of the last increment that the history does not have.
    """

    loads: list[Measurement]
    builds: list[Build]
    anti_join_seconds: float


def run_increments(
    history: History, folder: Path, repeat: int, *, memory_limit: str, timeout_seconds: float
) -> IncrementalRun:
    """Land and build increments one after the other, each of another day; a build that warms dbt's partial parse and
    finds nothing new goes before."""
    shutil.rmtree(folder, ignore_errors=True)
    files = [
        Path(line)
        for line in run(
            (
                sys.executable, "-m", "benchmarks.events", folder,
                "--history", str(history.deliveries), "--increments", str(repeat),
            ),
            timeout_seconds=timeout_seconds,
        ).output.splitlines()
    ]  # fmt: skip
    history.product.build(full_refresh=False)
    loads: list[Measurement] = []
    builds: list[Build] = []
    for file in files:
        loads.append(history.product.load([file]))
        builds.append(history.product.build(full_refresh=False))
    command = (
        sys.executable, "-m", "benchmarks.incremental", history.product.database, "--memory-limit", memory_limit,
    )  # fmt: skip
    outcome = json.loads(run(command, timeout_seconds=timeout_seconds).output)
    shutil.rmtree(folder)
    return IncrementalRun(loads, builds, float(outcome["seconds"]))


def anti_join_seconds(database: Path, memory_limit: str) -> float:
    """Median seconds of the query for the keys of the last batch that no earlier one has."""
    with duckdb.connect(str(database), read_only=True) as connection:
        connection.execute(f"set memory_limit = '{memory_limit}'")
        connection.execute(
            "create temp table keys as select idempotency_key from raw.usage_events "
            "where batch_id = (select max_by(batch_id, received_at) from raw.load_batches)"
        )
        (landed,) = connection.execute("select count(*) from keys").fetchall()[0]
        if landed != INCREMENT_DELIVERIES:
            raise ValueError(f"{database}: the last batch has {landed} deliveries and is no increment")
        seconds = []
        for _ in range(_ANTI_JOIN_REPEATS):
            started = time.monotonic()
            connection.execute(
                "select count(*) from keys anti join (select idempotency_key from raw.usage_events "
                "where batch_id <> (select max_by(batch_id, received_at) from raw.load_batches)) as history "
                "on keys.idempotency_key = history.idempotency_key"
            ).fetchall()
            seconds.append(time.monotonic() - started)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.incremental", description="Measure the bare anti-join.")
    parser.add_argument("database", type=Path)
    parser.add_argument("--memory-limit", default="8GB")
    arguments = parser.parse_args()
    print(json.dumps({"seconds": anti_join_seconds(arguments.database, arguments.memory_limit)}))


if __name__ == "__main__":
    main()
