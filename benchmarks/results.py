"""Measured figures, kept as JSON: one file for each run of the harness, written anew after each figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        part: full_refresh, data_tests, history, incremental.
        engine: ours, floor, postgres, clickhouse.
        events: deliveries that were built, or of the history that an increment met.
        seconds: wall clock of what the part measures.
        stages: seconds by stage; those of ours are sums over nodes, two of which may run at once.
        peak_memory_bytes: largest memory of the process or server.
        peak_spill_bytes: largest size of DuckDB's temporary files, where it is DuckDB.
        load_average: of the machine when the measurement began.
        nodes: seconds by dbt node, for ours.
        note: version of the engine, or whatever a reader must know.
    """

    part: str
    engine: str
    events: int
    seconds: float
    stages: Mapping[str, float]
    peak_memory_bytes: int | None = None
    peak_spill_bytes: int | None = None
    load_average: float = 0.0
    nodes: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Check:
    """Whether an engine's result equals that of the floor, on the same files.

    Attributes:
        engine: ours, postgres or clickhouse.
        events: deliveries.
        lines: invoice lines of usage on both sides together, each once.
        differing: those that only one side has, or with another amount or number of events.
        outcomes_equal: accepted, duplicate, rejected and conflicting deliveries are as many on both sides.
        is_conserved: deliveries = accepted + duplicates + rejected, on both sides.
    """

    engine: str
    events: int
    lines: int
    differing: int
    outcomes_equal: bool
    is_conserved: bool

    @property
    def passed(self) -> bool:
        return self.lines > 0 and self.differing == 0 and self.outcomes_equal and self.is_conserved


@dataclass(frozen=True)
class NotRun:
    """An engine that was asked for and could not run."""

    engine: str
    events: int
    reason: str


@dataclass
class Results:
    """All figures of one run."""

    started_at: str
    machine: Mapping[str, str]
    settings: Mapping[str, str]
    records: list[Record] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    not_run: list[NotRun] = field(default_factory=list)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".part")
        written.write_text(json.dumps(asdict(self), indent=1) + "\n")
        written.replace(path)


def read_results(path: Path) -> Results:
    """Read a file that save wrote."""
    content = json.loads(path.read_text())
    return Results(
        started_at=content["started_at"],
        machine=content["machine"],
        settings=content["settings"],
        records=[Record(**record) for record in content["records"]],
        checks=[Check(**check) for check in content["checks"]],
        not_run=[NotRun(**missing) for missing in content["not_run"]],
    )
