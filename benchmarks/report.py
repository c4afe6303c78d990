"""RESULTS.md, written from the measured files and from nothing else."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.results import FOLDER, Check, NotRun, Record, Results, read_results

RESULTS_PAGE = Path(__file__).resolve().parent / "RESULTS.md"
_ENGINES = {
    "floor": "bare SQL in DuckDB (floor)",
    "ours": "this project",
    "clickhouse": "ClickHouse's engine",
    "postgres": "PostgreSQL",
}
_COMMON_STAGES = ("land", "judge and count once", "aggregate", "rate")
_LARGEST_NODES = 12

_WHO_DOES_WHAT = (
    "All land the same files, give each delivery its outcome, count each key once, aggregate by hour, roll up to "
    "service periods and rate usage lines. This project counts with the start-up of its two commands, the floor with "
    "that of its process; ClickHouse and PostgreSQL without starting and stopping, and their last step, from usage of "
    "service periods to lines, is the floor's SQL in DuckDB. Only this project has fees, minimums, commitments, "
    "credits and marts."
)

Row = Sequence[str]


def write_report(paths: Iterable[Path], page: Path = RESULTS_PAGE) -> None:
    """Render the results of runs into a page; of figures that several runs have, those of the newest are taken.

    A ratio never crosses runs: a part at a size is taken from one run as a whole, and increments at all sizes.
    """
    page.write_text(render([read_results(path) for path in paths]))


def render(runs: Sequence[Results]) -> str:
    """The page as text.

    Args:
        runs: at least one.
    """
    newest_first = sorted(runs, key=lambda run: run.started_at, reverse=True)
    sections = [
        "# Benchmark results",
        "Written by `make bench` from the files of the runs, not by hand. What is measured, and how, is in "
        "[README.md](README.md). Seconds are medians of the repetitions of one run.",
        _full_refresh(_newest(newest_first, "full_refresh"), newest_first),
        _stages(_newest(newest_first, "full_refresh")),
        _nodes(_newest(newest_first, "full_refresh")),
        _checks(newest_first),
        _data_tests(_newest(newest_first, "data_tests")),
        _histories(_newest(newest_first, "history")),
        _incremental(_newest_run(newest_first, "incremental")),
        _machines(newest_first),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _newest(newest_first: Sequence[Results], part: str) -> dict[int, list[Record]]:
    """Records of a part by size, each size from the newest run that has it."""
    found: dict[int, list[Record]] = {}
    for run in newest_first:
        found = {**_by_size(run, part), **found}
    return dict(sorted(found.items()))


def _newest_run(newest_first: Sequence[Results], part: str) -> dict[int, list[Record]]:
    """Records of a part by size, all from the newest run that has any: for figures that compare sizes."""
    return next((sizes for run in newest_first if (sizes := _by_size(run, part))), {})


def _by_size(run: Results, part: str) -> dict[int, list[Record]]:
    sizes: dict[int, list[Record]] = {}
    for record in run.records:
        if record.part == part:
            sizes.setdefault(record.events, []).append(record)
    return dict(sorted(sizes.items()))


def _by_engine(records: Iterable[Record]) -> dict[str, list[Record]]:
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record.engine, []).append(record)
    return {engine: grouped[engine] for engine in _ENGINES if engine in grouped}


def _median(records: Iterable[Record], figure: Callable[[Record], float] = lambda record: record.seconds) -> float:
    return statistics.median(figure(record) for record in records)


def _stage(name: str) -> Callable[[Record], float]:
    return lambda record: record.stages.get(name, 0.0)


def _common_seconds(record: Record) -> float:
    return sum(record.stages.get(stage, 0.0) for stage in _COMMON_STAGES)


def _full_refresh(sizes: Mapping[int, Sequence[Record]], newest_first: Sequence[Results]) -> str:
    rows: list[Row] = []
    for events, records in sizes.items():
        engines = _by_engine(records)
        floor = _median(engines["floor"]) if "floor" in engines else None
        for engine, repeats in engines.items():
            seconds = _median(repeats)
            rows.append(
                (
                    f"{events:,}",
                    _ENGINES[engine] + (f" {repeats[0].note}" if repeats[0].note else ""),
                    f"{seconds:.1f}",
                    f"{min(r.seconds for r in repeats):.1f} to {max(r.seconds for r in repeats):.1f}",
                    str(len(repeats)),
                    f"{events / seconds:,.0f}",
                    _ratio(seconds, floor),
                    _gibibytes(max((r.peak_memory_bytes or 0) for r in repeats)),
                    _gibibytes(max((r.peak_spill_bytes or 0) for r in repeats)),
                )
            )
        rows += [
            (f"{events:,}", _ENGINES[missing.engine], f"not run: {missing.reason}", "", "", "", "", "", "")
            for missing in _missing(newest_first)
            if missing.events == events and missing.engine not in engines
        ]
    if not rows:
        return ""
    return f"## Full refresh: from files to rated lines\n\n{_WHO_DOES_WHAT}\n\n" + _table(
        ("deliveries", "engine", "seconds", "range", "runs", "deliveries/s", "to floor", "peak GiB", "spill GiB"), rows
    )


def _missing(newest_first: Sequence[Results]) -> list[NotRun]:
    found = {(missing.engine, missing.events): missing for run in reversed(newest_first) for missing in run.not_run}
    return list(found.values())


def _stages(sizes: Mapping[int, Sequence[Record]]) -> str:
    rows: list[Row] = []
    for events, records in sizes.items():
        engines = _by_engine(records)
        floor = _median(engines["floor"], _common_seconds) if "floor" in engines else None
        for engine, repeats in engines.items():
            common = _median(repeats, _common_seconds)
            rows.append(
                (
                    f"{events:,}",
                    _ENGINES[engine],
                    *(_share(_median(repeats, _stage(stage)), common) for stage in _COMMON_STAGES),
                    f"{common:.1f}",
                    _ratio(common, floor),
                )
            )
    if not rows:
        return ""
    return (
        "## The same stages, like with like\n\n"
        "Seconds and share of the four stages that all have. Those of this project are sums over its nodes, two of "
        "which may run at once, and its landing includes the start of the command.\n\n"
        + _table(("deliveries", "engine", *_COMMON_STAGES, "sum", "to floor"), rows)
    )


def _nodes(sizes: Mapping[int, Sequence[Record]]) -> str:
    ours = {events: [r for r in records if r.engine == "ours"] for events, records in sizes.items()}
    measured = {events: records for events, records in ours.items() if records}
    if not measured:
        return ""
    stages = sorted({stage for records in measured.values() for record in records for stage in record.stages})
    stage_rows = [
        (stage, *(f"{_median(records, _stage(stage)):.1f}" for records in measured.values())) for stage in stages
    ]
    largest = measured[max(measured)]
    return (
        "## Where this project's time goes\n\n"
        + _table(("seconds", *(f"{events:,}" for events in measured)), stage_rows)
        + f"\n\nThe longest nodes at {max(measured):,} deliveries:\n\n"
        + _table(("node", "seconds"), _longest_nodes(largest))
    )


def _longest_nodes(records: Sequence[Record]) -> list[Row]:
    names = {name for record in records for name in record.nodes}
    seconds = {name: _median(records, lambda record, name=name: record.nodes.get(name, 0.0)) for name in names}  # type: ignore[misc]
    longest = sorted(seconds.items(), key=lambda item: (-item[1], item[0]))[:_LARGEST_NODES]
    return [(f"`{name.split('.')[2]}`", f"{duration:.1f}") for name, duration in longest]


def _checks(newest_first: Sequence[Results]) -> str:
    found: dict[tuple[int, str], Check] = {}
    for run in newest_first:
        # Of several repetitions one that did not pass is the one to show.
        worst = {
            (check.events, check.engine): check for check in sorted(run.checks, key=lambda check: not check.passed)
        }
        found = {**worst, **found}
    if not found:
        return ""
    rows = [
        (
            f"{check.events:,}",
            _ENGINES[check.engine],
            f"{check.lines:,}",
            f"{check.differing:,}",
            "equal" if check.outcomes_equal else "**differ**",
            "yes" if check.is_conserved else "**no**",
        )
        for _, check in sorted(found.items())
    ]
    return (
        "## Same result\n\n"
        "Invoice lines of usage (amount to the minor unit, number of events) and outcomes of deliveries against those "
        "of the floor.\n\n"
        + _table(("deliveries", "engine", "lines compared", "lines differing", "outcomes", "conserved"), rows)
    )


def _data_tests(sizes: Mapping[int, Sequence[Record]]) -> str:
    rows = [
        (
            f"{events:,}",
            f"{_median(records):.1f}",
            f"{_median(records, _stage('tests')):.1f}",
            _gibibytes(max((r.peak_memory_bytes or 0) for r in records)),
        )
        for events, records in sizes.items()
    ]
    if not rows:
        return ""
    return "## Full refresh with all data tests\n\n" + _table(
        ("deliveries", "seconds", "of these, tests (sum over tests)", "peak GiB"), rows
    )


def _histories(sizes: Mapping[int, Sequence[Record]]) -> str:
    rows = [
        (
            f"{events:,}",
            records[-1].note,
            f"{records[-1].seconds:.0f}",
            f"{events / records[-1].seconds:,.0f}",
            _gibibytes(records[-1].peak_memory_bytes or 0),
            _gibibytes(records[-1].peak_spill_bytes or 0),
        )
        for events, records in sizes.items()
    ]
    if not rows:
        return ""
    return (
        "## Full refresh under a memory limit\n\nOne run each; these are the histories of the next table.\n\n"
        + _table(("deliveries", "limit", "seconds", "deliveries/s", "peak GiB", "spill GiB"), rows)
    )


def _incremental(sizes: Mapping[int, Sequence[Record]]) -> str:
    if not sizes:
        return ""

    def without_anti_join(records: Sequence[Record]) -> float:
        return _median(records, lambda record: record.seconds - record.stages["anti-join"])

    smallest = next(iter(sizes.values()))
    rows = [
        (
            f"{events:,}",
            f"{_median(records, _stage('land')):.1f}",
            f"{_median(records, lambda record: record.seconds - record.stages['land']):.1f}",
            f"{_median(records):.1f}",
            f"{_median(records, _stage('anti-join')):.2f}",
            f"{without_anti_join(records):.1f}",
            _ratio(without_anti_join(records), without_anti_join(smallest)),
            str(len(records)),
        )
        for events, records in sizes.items()
    ]
    longest = sizes[max(sizes)]
    return (
        "## An increment of 100,000 deliveries\n\n"
        "Landed and built, start-up included, medians of several increments. The anti-join is a query by itself: the "
        "100,000 keys against those of the history.\n\n"
        + _table(
            ("history", "land", "build", "total", "anti-join", "total without", "to the smallest", "increments"), rows
        )
        + f"\n\nThe longest nodes on {max(sizes):,} deliveries, beside those on {min(sizes):,}:\n\n"
        + _table(("node", f"on {max(sizes):,}", f"on {min(sizes):,}"), _nodes_side_by_side(longest, smallest))
    )


def _nodes_side_by_side(records: Sequence[Record], others: Sequence[Record]) -> list[Row]:
    seconds = {name: duration for name, duration in _longest_nodes(others)}
    return [(name, duration, seconds.get(name, "less")) for name, duration in _longest_nodes(records)]


def _machines(newest_first: Sequence[Results]) -> str:
    rows = []
    for run in newest_first:
        facts = ", ".join(f"{name} {value}" for name, value in {**run.machine, **run.settings}.items())
        load = max((record.load_average for record in run.records), default=0.0)
        rows.append((run.started_at, facts, f"{load:.1f}"))
    return "## Runs and machines\n\n" + _table(("started (UTC)", "facts", "highest load before a measurement"), rows)


def _share(seconds: float, whole: float) -> str:
    return f"{seconds:.1f} ({seconds / whole:.0%})" if whole else f"{seconds:.1f}"


def _ratio(seconds: float, base: float | None) -> str:
    return "" if not base else f"{seconds / base:.2f} ×"


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.1f}" if size else ""


def _table(header: Row, rows: Iterable[Row]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description="Write RESULTS.md from measured files."
    )
    parser.add_argument("files", type=Path, nargs="*", help="results of runs; all in benchmarks/results by default")
    paths = parser.parse_args().files or sorted(FOLDER.glob("*.json"))
    if not paths:
        parser.error("nothing was measured yet: run make bench")
    write_report(paths)


if __name__ == "__main__":
    main()
