"""A warehouse of its own for each test, driven through the project's own functions and dbt."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from dbt.contracts.files import FileHash
from dbt.contracts.graph.manifest import ManifestStateCheck
from dbt.parser.manifest import ManifestLoader
from dbt_common.events.base_types import BaseEvent, EventLevel
from dbt_common.events.event_manager import EventManager
from dbt_common.events.types import PrintEvent

from orchestration.lib import project
from orchestration.lib.landing import land_files
from orchestration.lib.price_book import price_book_hash
from orchestration.lib.project import PROJECT_DIR, Settings
from orchestration.lib.warehouse import connect

Row = tuple[Any, ...]

# A process is given a file at a time: those that take longest come first, so that none is left for the end.
LONGEST_FILES = ("test_invariants.py", "test_close.py", "test_scenarios.py", "test_cli.py", "test_dagster.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files of this folder before its others; the rest keeps its order."""

    def place(item: pytest.Item) -> int:
        if item.path.parent != Path(__file__).parent:
            return 0
        return 1 + (*LONGEST_FILES, item.path.name).index(item.path.name)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _dbt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """dbt in this process: artifacts and logs in folders of its own, so that tests can run side by side, and no work that
    no test looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBT_TARGET_PATH", str(tmp_path_factory.mktemp("dbt") / "target"))
        patch.setenv("DBT_LOG_PATH", str(tmp_path_factory.mktemp("dbt") / "logs"))
        patch.setattr(ManifestLoader, "build_manifest_state_check", _state_check)
        patch.setattr(EventManager, "fire_event", _fire_if_heard)
        # As the command does.
        gc.set_threshold(100_000, 20, 50)
        yield


def _state_check(loader: ManifestLoader) -> ManifestStateCheck:
    """What dbt compares to know whether all files must be parsed again, without the database's path and as_of.

    Both differ in each test, nothing that is parsed depends on them, and parsing takes longer than many a build.
    """
    check = _STATE_CHECK(loader)
    variables = {name: value for name, value in loader.root_project.cli_vars.items() if name != "as_of"}
    credentials = loader.root_project.credentials
    check.vars_hash = FileHash.from_contents(f"{sorted(variables.items())} {loader.root_project.args.target}")
    check.profile_hash = FileHash.from_contents(f"{credentials.type} {credentials.database} {credentials.schema}")
    return check


def _fire_if_heard(
    manager: EventManager, e: BaseEvent, level: EventLevel | None = None, *arguments: Any, **options: Any
) -> None:
    """What dbt tells at the levels that --quiet drops is formatted all the same, which takes an eighth of a build."""
    if isinstance(e, PrintEvent) or (level or e.level_tag()) not in (EventLevel.DEBUG, EventLevel.INFO):
        _FIRE_EVENT(manager, e, level, *arguments, **options)


@contextlib.contextmanager
def _without_artifacts() -> Iterator[None]:
    """Nobody reads the files that dbt writes about a build here, and they take a quarter of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBT_WRITE_JSON", "false")
        patch.setenv("DBT_LOG_LEVEL_FILE", "none")
        yield


_STATE_CHECK = ManifestLoader.build_manifest_state_check
_FIRE_EVENT = EventManager.fire_event


class Warehouse:
    """One DuckDB file and the dbt project that builds it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self._files = 0
        # Hash of the seeds that were loaded last, and the selection they were loaded for.
        self._seeds_loaded: tuple[str, tuple[str, ...]] | None = None

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        with connect(self.settings) as connection:
            return connection.execute(sql, list(parameters)).fetchall()

    def land_lines(self, lines: Iterable[str | bytes], name: str = "events.jsonl") -> Path:
        """Write lines to a file of its own and land it."""
        self._files += 1
        path = self.folder / f"{self._files:04d}" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
        self.land(path)
        return path

    def land_events(self, events: Iterable[Mapping[str, Any]]) -> Path:
        return self.land_lines(json.dumps(event) for event in events)

    def land(self, *paths: Path) -> None:
        with connect(self.settings) as connection:
            land_files(connection, paths, progress=lambda _: None)

    def insert_delivery(self, batch_id: str, line_number: int, received_at: datetime, event: Mapping[str, Any]) -> None:
        self.insert_deliveries([(batch_id, line_number, received_at, event)])

    def insert_deliveries(self, deliveries: Iterable[tuple[str, int, datetime, Mapping[str, Any]]]) -> None:
        """Deliveries with chosen batch, line and time of receipt, as another loader could have landed them."""
        fields = (
            "idempotency_key", "event_type", "schema_version", "customer_id", "occurred_at", "properties", "corrects",
            "correction",
        )  # fmt: skip
        rows = [
            [
                batch_id, line_number, "test", received_at,
                *(json.dumps(event[field]) if field == "properties" else event.get(field) for field in fields),
            ]
            for batch_id, line_number, received_at, event in deliveries
        ]  # fmt: skip
        with connect(self.settings) as connection, connection.landing() as raw:
            raw.executemany(
                f"insert into raw.usage_events (batch_id, line_number, source, received_at, {', '.join(fields)}) "
                f"values ({', '.join('?' * (4 + len(fields)))})",
                rows,
            )

    def build(self, *, full_refresh: bool = False, as_of: str | None = None) -> None:
        self._seeds_loaded = None
        with _without_artifacts():
            project.build(self.settings, full_refresh=full_refresh, as_of=as_of, quiet=True)

    def build_models(self, *select: str, full_refresh: bool = False, as_of: str | None = None) -> None:
        """Build without data tests, which take most of the time: for steps on the way, and for states to compare with.

        Args:
            select: what a test looks at, such as `+int_usage_hourly`; everything by default.
            full_refresh: rebuild from raw.
            as_of: instant in UTC.
        """
        seeds = price_book_hash(self.settings.project)
        # Loading seeds again that have not changed changes nothing.
        loaded = self._seeds_loaded if self._seeds_loaded in ((seeds, ()), (seeds, select)) else None
        arguments = ["model"] if loaded else ["seed", "model"]
        self._seeds_loaded = None
        if select:
            arguments += ["--select", *select]
        if full_refresh:
            arguments.append("--full-refresh")
        if as_of is not None:
            arguments += ["--vars", f"{{as_of: '{as_of}'}}"]
        with _without_artifacts():
            # One node at a time: tests run side by side, and dbt's threads cost more than they bring then.
            project.run_dbt(self.settings, "build", "--threads", "1", "--resource-type", *arguments, quiet=True)
        self._seeds_loaded = loaded or (seeds, select)

    def count_as_whole(self) -> None:
        """What was built may be closed and sent, as if the data tests had run with it."""
        with connect(self.settings) as connection:
            connection.execute("update ops.build_log set is_whole = true")

    def tables(self, *names: str) -> dict[str, list[Row]]:
        """These tables, every column, in a fixed order of rows."""
        with connect(self.settings) as connection:
            return {name: connection.execute(f"select * from {name} order by all").fetchall() for name in names}

    def marts(self) -> dict[str, list[Row]]:
        """Every mart, every column, in a fixed order of rows."""
        with connect(self.settings) as connection:
            names = [
                row[0]
                for row in connection.execute(
                    "select 'marts.' || table_name from information_schema.tables "
                    "where table_schema = 'marts' order by 1"
                ).fetchall()
            ]
        return {name.removeprefix("marts."): rows for name, rows in self.tables(*names).items()}

    def outcome_counts(self) -> dict[str, int]:
        rows = self.query("select delivery_status, count(*) from staging.stg_event_deliveries group by 1")
        return {"accepted": 0, "duplicate": 0, "rejected": 0} | dict(rows)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """An empty warehouse, built by this project."""
    return Warehouse(Settings(database=tmp_path / "warehouse" / "metering.duckdb", target="ci"), tmp_path)


@pytest.fixture
def project_copy(tmp_path: Path) -> Path:
    """A copy of the dbt project whose seeds a test may change."""
    copy = tmp_path / "project"
    for folder in ("models", "macros", "seeds", "profiles", "tests/generic", "tests/singular"):
        shutil.copytree(PROJECT_DIR / folder, copy / folder)
    shutil.copy(PROJECT_DIR / "dbt_project.yml", copy)
    return copy


@pytest.fixture
def warehouse_of_copy(tmp_path: Path, project_copy: Path) -> Warehouse:
    """An empty warehouse, built by a copy of this project."""
    settings = Settings(database=tmp_path / "warehouse" / "metering.duckdb", target="ci", project=project_copy)
    return Warehouse(settings, tmp_path)


@pytest.fixture
def green_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closes that ask no guard: they are judged in tests of their own, and take longer than all else that a close does."""
    green = types.SimpleNamespace(require_passed=lambda: None)
    monkeypatch.setattr("orchestration.lib.close.run_guards", lambda *_: green)


def llm_request(key: str, **changes: Any) -> dict[str, Any]:
    """A valid event; changes go to the envelope, or to the properties with the prefix p_."""
    event: dict[str, Any] = {
        "idempotency_key": key,
        "event_type": "llm_request",
        "schema_version": 1,
        "customer_id": "cus_000",
        "occurred_at": "2026-09-10T12:00:00Z",
        "properties": {"service": "code", "context_tokens": 100, "generated_tokens": 10},
    }
    for name, value in changes.items():
        if name.startswith("p_"):
            event["properties"][name[2:]] = value
        else:
            event[name] = value
    return event


@pytest.fixture
def make_event() -> Callable[..., dict[str, Any]]:
    return llm_request
