"""From files to rated lines, by one engine, on files that all engines share."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import load_average
from benchmarks.measure import run
from benchmarks.ours import Product, ours_stages
from benchmarks.results import Check, Record
from benchmarks.verify import (
    Lines,
    Outcomes,
    differing_lines,
    floor_outcomes,
    product_lines,
    product_outcomes,
    rated_lines,
)


@dataclass(frozen=True)
class Settings:
    """What all engines are given.

    Attributes:
        folder: for databases; emptied after each run.
        memory_limit: of DuckDB, for the product's build and the floor.
        timeout_seconds: of each process.
    """

    folder: Path
    memory_limit: str
    timeout_seconds: float


@dataclass(frozen=True)
class Outcome:
    """A measurement with what came out."""

    record: Record
    outcomes: Outcomes
    lines: Lines


def run_ours(files: Sequence[Path], events: int, settings: Settings) -> Outcome:
    """metering load, then dbt build --full-refresh without tests."""
    product = _product(settings)
    record = _load_and_build(product, files, events, part="full_refresh", data_tests=False)
    return Outcome(record, product_outcomes(product.database), product_lines(product.database))


def run_data_tests(files: Sequence[Path], events: int, settings: Settings) -> Record:
    """metering load, then the whole build with all data tests, as metering build makes it."""
    return _load_and_build(_product(settings), files, events, part="data_tests", data_tests=True)


def run_floor(files: Sequence[Path], events: int, settings: Settings) -> Outcome:
    load_before = load_average()
    database = _empty(settings.folder) / "floor.duckdb"
    measured = run(
        (sys.executable, "-m", "benchmarks.floor", database, *files, "--memory-limit", settings.memory_limit),
        timeout_seconds=settings.timeout_seconds,
        spill_folder=database.with_name(database.name + ".tmp"),
    )
    record = Record(
        part="full_refresh",
        engine="floor",
        events=events,
        seconds=measured.seconds,
        stages=json.loads(measured.output),
        peak_memory_bytes=measured.peak_memory_bytes,
        peak_spill_bytes=measured.peak_spill_bytes,
        load_average=load_before,
    )
    return Outcome(record, floor_outcomes(database), rated_lines(database))


def run_postgres(files: Sequence[Path], events: int, settings: Settings) -> Outcome:
    return _run_other("postgres", files, events, settings)


def run_clickhouse(files: Sequence[Path], events: int, settings: Settings) -> Outcome:
    return _run_other("clickhouse", files, events, settings)


ENGINES: dict[str, Callable[[Sequence[Path], int, Settings], Outcome]] = {
    "floor": run_floor,
    "ours": run_ours,
    "clickhouse": run_clickhouse,
    "postgres": run_postgres,
}


def check_against(floor: Outcome, other: Outcome) -> Check:
    """Hold an engine's outcomes and lines against those of the floor."""
    return Check(
        engine=other.record.engine,
        events=other.record.events,
        lines=len(floor.lines.keys() | other.lines.keys()),
        differing=len(differing_lines(floor.lines, other.lines)),
        outcomes_equal=floor.outcomes == other.outcomes,
        is_conserved=floor.outcomes.is_conserved and other.outcomes.is_conserved,
    )


def _run_other(engine: str, files: Sequence[Path], events: int, settings: Settings) -> Outcome:
    """Engines that are servers or sessions: their seconds are those of the stages, without start and stop."""
    load_before = load_average()
    folder = _empty(settings.folder)
    database = folder / "lines.duckdb"
    measured = run(
        (sys.executable, "-m", f"benchmarks.{engine}", database, folder / engine, *files),
        timeout_seconds=settings.timeout_seconds,
    )
    report = json.loads(measured.output)
    deliveries, accepted, duplicates, rejected, conflicts = report["outcomes"]
    record = Record(
        part="full_refresh",
        engine=engine,
        events=events,
        seconds=sum(report["stages"].values()),
        stages=report["stages"],
        peak_memory_bytes=report.get("peak_memory_bytes", measured.peak_memory_bytes),
        load_average=load_before,
        note=report["version"],
    )
    return Outcome(record, Outcomes(deliveries, accepted, duplicates, rejected, conflicts), rated_lines(database))


def _load_and_build(product: Product, files: Sequence[Path], events: int, *, part: str, data_tests: bool) -> Record:
    product.parse()
    load_before = load_average()
    load = product.load(files)
    build = product.build(full_refresh=True, data_tests=data_tests)
    return Record(
        part=part,
        engine="ours",
        events=events,
        seconds=load.seconds + build.measurement.seconds,
        stages=ours_stages(load, build),
        peak_memory_bytes=max(load.peak_memory_bytes, build.measurement.peak_memory_bytes),
        peak_spill_bytes=max(load.peak_spill_bytes, build.measurement.peak_spill_bytes),
        load_average=load_before,
        nodes=build.nodes,
    )


def _product(settings: Settings) -> Product:
    return Product(
        _empty(settings.folder) / "product",
        memory_limit=settings.memory_limit,
        timeout_seconds=settings.timeout_seconds,
    )


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
