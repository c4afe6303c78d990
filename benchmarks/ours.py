"""The product as a user runs it: metering load, then dbt build, each a process with its start-up."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.measure import PROJECT, Measurement, run

_BIN = Path(sys.executable).parent
_WITHOUT_TESTS = ("--exclude-resource-type", "test", "--exclude-resource-type", "unit_test")
# As metering build does: unit tests prove the models, not the data.
_WITH_DATA_TESTS = ("--exclude-resource-type", "unit_test")


@dataclass(frozen=True)
class Build:
    """A run of dbt.

    Attributes:
        measurement: of the process.
        nodes: seconds of each seed, model and test by its unique id, as dbt reports them.
        areas: seconds of nodes added up by area: seeds, staging, metering, rating, marts, tests, hooks. Two nodes may
            run at once, so that areas may add up to more than the time they took.
        overhead_seconds: the part of the wall clock in which no node ran: imports, parsing, hooks.
    """

    measurement: Measurement
    nodes: Mapping[str, float]
    areas: Mapping[str, float]
    overhead_seconds: float


class Product:
    """The project on a database of its own, with artifacts of its own in the same folder."""

    def __init__(self, folder: Path, *, memory_limit: str, timeout_seconds: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.database = folder / "metering.duckdb"
        self._target = folder / "target"
        self._timeout_seconds = timeout_seconds
        self._environment = {
            "METERING_DUCKDB_PATH": str(self.database),
            "METERING_DUCKDB_MEMORY_LIMIT": memory_limit,
            "METERING_TARGET": "dev",
            "DBT_PROFILES_DIR": str(PROJECT / "profiles"),
            "DBT_TARGET_PATH": str(self._target),
            "DBT_LOG_PATH": str(folder / "logs"),
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            "DO_NOT_TRACK": "1",
        }

    def parse(self) -> None:
        """Fill dbt's parse cache, which any run after the first finds filled."""
        self._run(_BIN / "dbt", "--quiet", "parse")

    def load(self, files: Sequence[Path]) -> Measurement:
        return self._run(_BIN / "metering", "load", *files)

    def build(self, *, full_refresh: bool, data_tests: bool = False) -> Build:
        arguments = ["build", *(("--full-refresh",) if full_refresh else ())]
        arguments += _WITH_DATA_TESTS if data_tests else _WITHOUT_TESTS
        measurement = self._run(_BIN / "dbt", "--quiet", *arguments)
        results = json.loads((self._target / "run_results.json").read_text())["results"]
        manifest = json.loads((self._target / "manifest.json").read_text())["nodes"]
        nodes = {str(result["unique_id"]): float(result["execution_time"]) for result in results}
        areas: dict[str, float] = {}
        for node, seconds in nodes.items():
            area = _area(str(manifest[node]["original_file_path"]), node)
            areas[area] = areas.get(area, 0.0) + seconds
        return Build(measurement, nodes, areas, measurement.seconds - _busy_seconds(results))

    def _run(self, *command: str | Path) -> Measurement:
        return run(
            command,
            timeout_seconds=self._timeout_seconds,
            environment=self._environment,
            spill_folder=self.database.with_name(self.database.name + ".tmp"),
        )


# Areas of the project under the names of the stages that the bare engines have.
_STAGE_OF_AREA = {"staging": "judge and count once", "metering": "aggregate", "rating": "rate"}


def ours_stages(load: Measurement, build: Build) -> dict[str, float]:
    """Seconds by stage: landing as a whole process, the areas of the build, and start-up, in which no node ran."""
    stages = {"land": load.seconds}
    for area, seconds in build.areas.items():
        stages[_STAGE_OF_AREA.get(area, area)] = seconds
    return {**stages, "start-up": build.overhead_seconds}


def _area(path: str, node: str) -> str:
    kind = node.split(".", 1)[0]
    if kind != "model":
        return {"seed": "seeds", "operation": "hooks"}.get(kind, "tests")
    folders = path.split("/")
    return folders[2] if folders[1] == "intermediate" else folders[1]


def _busy_seconds(results: Sequence[Mapping[str, object]]) -> float:
    """The length of the union of the intervals in which nodes ran."""
    intervals = sorted(
        (_instant(timing["started_at"]), _instant(timing["completed_at"]))
        for result in results
        for timing in result["timing"]  # type: ignore[attr-defined]
        if timing["name"] == "execute"
    )
    busy, reached = 0.0, float("-inf")
    for start, end in intervals:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy


def _instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
