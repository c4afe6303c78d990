"""Conformance: priced cases of public billing systems, rated by the models.

One build holds them all: each case is a customer, or several, of one price book. `conformance/book.py` says how a case is written.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from orchestration.lib.project import PROJECT_DIR, BuildError, Settings
from orchestration.lib.warehouse import connect
from tests.integration.conformance.book import Case, Marts, build_events, build_seeds, read_cases, read_figures
from tests.integration.conftest import Warehouse
from tests.integration.price_books import write_seeds

CASES = read_cases()
TABLES = {"lines": "marts.fct_rated_lines", "usage": "marts.fct_usage_by_service_period"}


def build_marts(folder: Path) -> Marts:
    """Build the price book of all cases and read what it comes to, as text with all digits."""
    project = folder / "project"
    for part in ("models", "macros", "seeds", "profiles", "tests/generic", "tests/singular"):
        shutil.copytree(PROJECT_DIR / part, project / part)
    shutil.copy(PROJECT_DIR / "dbt_project.yml", project)
    write_seeds(project, build_seeds())
    settings = Settings(database=folder / "warehouse" / "metering.duckdb", target="ci", project=project)
    warehouse = Warehouse(settings, folder)
    events = list(build_events())
    warehouse.land_events(events)
    warehouse.build()
    assert warehouse.outcome_counts() == {"accepted": len(events), "duplicate": 0, "rejected": 0}
    marts = {}
    with connect(settings) as connection:
        for name, table in TABLES.items():
            marts[name] = connection.execute(f"select cast(columns(*) as varchar) from {table}").records()
    return marts


@pytest.fixture(scope="module")
def marts(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Marts:
    """What the marts show: one build for all processes of a test run."""
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent
    results = shared / "conformance.json"
    with (shared / "conformance.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not results.exists():
            try:
                results.write_text(json.dumps(build_marts(tmp_path_factory.mktemp("conformance"))))
            except BuildError as error:
                message = f"the price book of the cases does not build: {error}"
                raise pytest.fail.Exception(message, pytrace=False) from None
    rows: Marts = json.loads(results.read_text())
    return rows


def test_cases_are_complete() -> None:
    """Each case says what it needs to; a figure is ours alone only where a decision says so."""
    assert [case.number for case in CASES] == list(range(133))
    for case in CASES:
        differing = [check for check in case.expected if "source_is" in check]
        if case.outcome == "not_applicable":
            assert case.reason, case.id
            assert case.source_is, case.id
            assert not case.expected, case.id
        else:
            assert case.expected, case.id
            assert bool(differing) == (case.outcome == "differs"), case.id
            assert case.decision or not differing, case.id
            assert all(check["source_is"] != check["is"] for check in differing), case.id


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case: Case, request: pytest.FixtureRequest) -> None:
    if case.outcome == "not_applicable":
        pytest.skip(f"not applicable: {case.reason}")
    marts: Marts = request.getfixturevalue("marts")
    assert [str(figure) for figure in read_figures(case, marts) if not figure.holds] == []


def test_summary(marts: Marts, capsys: pytest.CaptureFixture[str]) -> None:
    """How many of the cases run and agree, and why the others do not."""
    counts: Counter[str] = Counter(cases=len(CASES))
    report = []
    for case in CASES:
        if case.outcome == "not_applicable":
            counts["not applicable"] += 1
            report.append(f"  {case.id}: not applicable. {case.reason}")
            continue
        counts["run"] += 1
        figures = read_figures(case, marts)
        if not all(figure.holds for figure in figures):
            counts["fail"] += 1
            report.append(f"  {case.id}: fails")
        elif case.outcome == "differs":
            counts["differ by decision"] += 1
            differing = ", ".join(
                f"{figure.expected} (source: {figure.source})" for figure in figures if figure.source != figure.expected
            )
            report.append(f"  {case.id}: differs by decision, {case.decision}: {differing}")
        else:
            counts["agree"] += 1
    with capsys.disabled():
        print("\nconformance:", ", ".join(f"{count} {what}" for what, count in counts.items()))
        print("\n".join(report))
    assert counts == {"cases": 133, "run": 124, "agree": 120, "differ by decision": 4, "not applicable": 9}
