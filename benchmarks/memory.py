"""A full refresh under a memory limit: a history landed and built, with what it took."""

from __future__ import annotations

from pathlib import Path

from benchmarks.history import History, build_history
from benchmarks.machine import load_average
from benchmarks.ours import ours_stages
from benchmarks.results import Record


def measure_history(
    folder: Path, deliveries: int, *, memory_limit: str, timeout_seconds: float
) -> tuple[History, Record]:
    """Build a history and say how long it took, and how much memory and disk it needed on the way.

    The limit is that of dbt's build. Landing works file by file and takes DuckDB's own limit.
    """
    load = load_average()
    history = build_history(folder, deliveries, memory_limit=memory_limit, timeout_seconds=timeout_seconds)
    record = Record(
        part="history",
        engine="ours",
        events=deliveries,
        seconds=history.load.seconds + history.build.measurement.seconds,
        stages=ours_stages(history.load, history.build),
        peak_memory_bytes=max(history.load.peak_memory_bytes, history.build.measurement.peak_memory_bytes),
        peak_spill_bytes=max(history.load.peak_spill_bytes, history.build.measurement.peak_spill_bytes),
        load_average=load,
        nodes=history.build.nodes,
        note=f"memory limit {memory_limit}",
    )
    return history, record
