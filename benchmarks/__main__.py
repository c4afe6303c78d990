"""The harness: python -m benchmarks --help."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.events import MAX_INCREMENTS
from benchmarks.full_refresh import ENGINES, Outcome, Settings, check_against, run_data_tests
from benchmarks.history import write_files
from benchmarks.incremental import run_increments
from benchmarks.machine import load_average, machine_facts
from benchmarks.measure import BenchmarkError
from benchmarks.memory import measure_history
from benchmarks.ours import ours_stages
from benchmarks.postgres import MissingProgramError, find_programs
from benchmarks.report import write_report
from benchmarks.results import FOLDER, NotRun, Record, Results

PARTS = (*ENGINES, "data-tests", "incremental", "memory")
_MAX_REPEAT = 20


class Harness:
    """One run: what was asked for, where it is kept, and what was measured so far."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        started = datetime.now(UTC)
        self._arguments = arguments
        self._work = work
        self._settings = Settings(work / "run", arguments.memory_limit, arguments.timeout)
        self.path = FOLDER / f"{started:%Y%m%dT%H%M%SZ}.json"
        self.results = Results(
            started_at=f"{started:%Y-%m-%d %H:%M}",
            machine=machine_facts(),
            settings={"memory limit": arguments.memory_limit},
        )

    def run(self) -> bool:
        """Run all parts that were asked for.

        Returns:
            Whether all results agree.
        """
        parts = self._arguments.only
        if any(engine in parts for engine in (*ENGINES, "data-tests")):
            for events in self._arguments.events:
                self._full_refresh(events)
        histories = set(self._arguments.history) if "incremental" in parts else set()
        for events in sorted(histories | (set(self._arguments.memory_events) if "memory" in parts else set())):
            self._history(events, increments=self._arguments.increments if events in histories else 0)
        return all(check.passed for check in self.results.checks)

    def _full_refresh(self, events: int) -> None:
        """Engines alternate, so that a machine that slows down slows all of them."""
        say(f"{events:,} deliveries: writing files")
        files = write_files(self._work / "events", events, timeout_seconds=self._settings.timeout_seconds)
        engines = [engine for engine in ENGINES if engine in self._arguments.only and self._can_run(engine, events)]
        for repeat in range(1, self._arguments.repeat + 1):
            outcomes: dict[str, Outcome] = {}
            for engine in engines:
                outcomes[engine] = ENGINES[engine](files, events, self._settings)
                record = outcomes[engine].record
                say(f"{events:,} deliveries, {engine}, {repeat} of {self._arguments.repeat}: {record.seconds:.1f} s")
                self._keep(record)
            self._check(outcomes)
        if "data-tests" in self._arguments.only:
            record = run_data_tests(files, events, self._settings)
            say(f"{events:,} deliveries, with data tests: {record.seconds:.1f} s")
            self._keep(record)
        shutil.rmtree(self._settings.folder, ignore_errors=True)
        shutil.rmtree(self._work / "events")

    def _can_run(self, engine: str, events: int) -> bool:
        reason = None
        if engine == "postgres":
            if events > self._arguments.postgres_max:
                reason = f"sizes up to {self._arguments.postgres_max:,} were asked for"
            else:
                try:
                    find_programs()
                except MissingProgramError as error:
                    reason = str(error)
        if engine == "clickhouse" and importlib.util.find_spec("chdb") is None:
            reason = "chdb is not installed: pip install -r benchmarks/requirements.lock"
        if reason is None:
            return True
        say(f"{events:,} deliveries, {engine}: not run, {reason}")
        self.results.not_run.append(NotRun(engine, events, reason))
        return False

    def _check(self, outcomes: dict[str, Outcome]) -> None:
        floor = outcomes.pop("floor", None)
        if floor is None:
            return
        for other in outcomes.values():
            check = check_against(floor, other)
            self.results.checks.append(check)
            say(
                f"  {check.engine} against floor: {check.lines:,} lines compared, {check.differing:,} differ; "
                f"outcomes {'equal' if check.outcomes_equal else 'differ'}, "
                f"{'conserved' if check.is_conserved else 'NOT conserved'}"
            )
        self.results.save(self.path)

    def _history(self, events: int, increments: int) -> None:
        say(f"history of {events:,} deliveries: writing, landing, building")
        folder = self._work / "history"
        limit, timeout = self._settings.memory_limit, self._settings.timeout_seconds
        history, record = measure_history(folder, events, memory_limit=limit, timeout_seconds=timeout)
        say(f"history of {events:,} deliveries: {record.seconds:.1f} s")
        self._keep(record)
        if increments:
            load_before = load_average()
            run = run_increments(
                history, self._work / "increments", increments, memory_limit=limit, timeout_seconds=timeout
            )
            for load, build in zip(run.loads, run.builds, strict=True):
                seconds = load.seconds + build.measurement.seconds
                say(f"  increment: {seconds:.1f} s; the anti-join by itself {run.anti_join_seconds:.2f} s")
                self._keep(
                    Record(
                        part="incremental",
                        engine="ours",
                        events=events,
                        seconds=seconds,
                        stages={**ours_stages(load, build), "anti-join": run.anti_join_seconds},
                        peak_memory_bytes=max(load.peak_memory_bytes, build.measurement.peak_memory_bytes),
                        peak_spill_bytes=build.measurement.peak_spill_bytes,
                        load_average=load_before,
                        nodes=build.nodes,
                    )
                )
        shutil.rmtree(folder)

    def _keep(self, record: Record) -> None:
        self.results.records.append(record)
        self.results.save(self.path)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return number


def _repeats(text: str) -> int:
    number = _count(text)
    if number > _MAX_REPEAT:
        raise argparse.ArgumentTypeError(f"{text}: at most {_MAX_REPEAT}")
    return number


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(PARTS)}")
    return parts


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this project beside a bare-SQL floor, ClickHouse's engine and PostgreSQL, and write "
        "benchmarks/RESULTS.md. Sizes are numbers of deliveries, such as 1_000_000.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--events", type=_count, nargs="+", default=[1_000_000], help="sizes of the full refresh")
    parser.add_argument("--repeat", type=_repeats, default=3, help="runs of each engine at each size")
    parser.add_argument("--history", type=_count, nargs="+", default=[1_000_000], help="sizes that increments meet")
    parser.add_argument("--increments", type=_repeats, default=3, help="increments on each history")
    parser.add_argument("--memory-events", type=_count, nargs="+", default=[1_000_000], help="sizes of the part memory")
    parser.add_argument("--memory-limit", default="8GB", help="of DuckDB, for dbt's builds and for the floor")
    parser.add_argument("--postgres-max", type=_count, default=1_000_000, help="largest size for PostgreSQL")
    parser.add_argument("--only", type=_parts, default=list(PARTS), help="parts to run, with commas between")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds after which a process is ended")
    parser.add_argument("--work", type=Path, help="folder to make a temporary one in, for files and databases")
    parsed = parser.parse_args(arguments)
    if parsed.increments > MAX_INCREMENTS:
        parser.error(f"--increments: at most {MAX_INCREMENTS}")
    return parsed


def main() -> None:
    arguments = parse()
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="metering-benchmarks-", dir=arguments.work) as folder:
        # PostgreSQL's server may have to run as another user, who must reach its files.
        Path(folder).chmod(0o755)
        harness = Harness(arguments, Path(folder))
        try:
            agree = harness.run()
        except BenchmarkError as error:
            sys.exit(f"benchmarks: {error}")
        finally:
            if harness.results.records:
                write_report(sorted(FOLDER.glob("*.json")))
                say("written: benchmarks/RESULTS.md")
    if not agree:
        sys.exit("benchmarks: the engines do not agree; see the lines above.")


if __name__ == "__main__":
    main()
