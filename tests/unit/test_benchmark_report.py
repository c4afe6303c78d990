"""RESULTS.md says what was measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import render, write_report
from benchmarks.results import Check, NotRun, Record, Results, read_results


def record(engine: str, seconds: float, *, part: str = "full_refresh", events: int = 1_000, **stages: float) -> Record:
    return Record(part, engine, events, seconds, stages, nodes={"model.metering.a": seconds})


def results(started_at: str, *records: Record) -> Results:
    return Results(started_at, {"cores": "2"}, {"memory limit": "8GB"}, list(records))


def test_ratios_are_of_medians() -> None:
    run = results("2026-01-01 00:00", *(record("floor", s) for s in (1, 2, 9)), *(record("ours", s) for s in (3, 4, 5)))
    page = render([run])
    assert "| 1,000 | bare SQL in DuckDB (floor) | 2.0 | 1.0 to 9.0 | 3 | 500 | 1.00 × |" in page
    assert "| 1,000 | this project | 4.0 | 3.0 to 5.0 | 3 | 250 | 2.00 × |" in page


def test_ratios_do_not_cross_runs() -> None:
    old = results("2026-01-01 00:00", record("floor", 1.0), record("ours", 10.0))
    new = results("2026-01-02 00:00", record("ours", 4.0))
    page = render([old, new])
    assert "| 1,000 | this project | 4.0 | 4.0 to 4.0 | 1 | 250 |  |" in page
    assert "10.0" not in page


def test_increments_are_compared_without_the_anti_join() -> None:
    def increment(events: int, seconds: float, anti_join: float) -> Record:
        return record("ours", seconds, part="incremental", events=events, land=1.0, **{"anti-join": anti_join})

    both = results("2026-01-01 00:00", increment(1_000, 10.5, 0.5), increment(50_000, 15.0, 3.0))
    assert "| 50,000 | 1.0 | 14.0 | 15.0 | 3.00 | 12.0 | 1.20 × | 1 |" in render([both])
    # A run of one history has nothing to compare it with, and takes nothing from another run.
    one = results("2026-01-02 00:00", increment(1_000, 20.5, 0.5))
    page = render([both, one])
    assert "| 1,000 | 1.0 | 19.5 | 20.5 | 0.50 | 20.0 | 1.00 × | 1 |" in page
    assert "| 50,000 |" not in page


def test_failed_checks_and_missing_engines_are_shown() -> None:
    run = results("2026-01-01 00:00", record("floor", 1.0))
    run.checks += [
        Check("ours", 1_000, 10, 2, outcomes_equal=False, is_conserved=True),
        Check("ours", 1_000, 10, 0, outcomes_equal=True, is_conserved=True),
    ]
    run.not_run.append(NotRun("postgres", 1_000, "PostgreSQL is not installed"))
    page = render([run])
    assert "| 1,000 | this project | 10 | 2 | **differ** | yes |" in page
    assert "| 1,000 | PostgreSQL | not run: PostgreSQL is not installed |" in page


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = results("2026-01-01 00:00", record("floor", 1.0), record("ours", 2.0))
    run.checks.append(Check("ours", 1_000, 10, 0, outcomes_equal=True, is_conserved=True))
    run.save(tmp_path / "run.json")
    assert read_results(tmp_path / "run.json") == run
    write_report([tmp_path / "run.json"], tmp_path / "RESULTS.md")
    assert (tmp_path / "RESULTS.md").read_text() == render([run])
