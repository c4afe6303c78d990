"""The warehouse behind one interface: DuckDB here, Snowflake in snowflake_warehouse."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import duckdb
from jinja2 import Environment

from orchestration.lib.project import MeteringError, Settings

if TYPE_CHECKING:
    import pandas as pd

Parameters = Sequence[object] | Mapping[str, object]

ROWS_PER_INSERT = 500

LANDING_TABLES = (
    ("raw", "usage_events"),
    ("raw", "load_batches"),
    ("raw", "independent_totals"),
    ("raw", "shadow_billing"),
    ("ops", "build_log"),
    ("ops", "stripe_sync_log"),
    ("ops", "stripe_sync_lock"),
    ("ops", "stripe_readback"),
    ("ops", "stripe_meter_readback"),
    ("ops", "what_if_lines"),
    ("ledger", "billing_runs"),
    ("ledger", "closed_periods"),
    ("ledger", "closed_terms"),
    ("ledger", "billing_ledger"),
    ("ledger", "close_lock"),
    ("ledger", "price_books"),
)


class WarehouseError(MeteringError):
    """The warehouse cannot be reached, or refused a statement. Messages never contain a secret."""


class MissingObjectError(WarehouseError):
    """A table, view or column that a statement names is not there, or may not be seen."""


class OpenTransactionError(WarehouseError):
    """Rows that must be durable at once were to be written inside a transaction."""


class BusyError(WarehouseError):
    """Another session changed the same rows at the same time; nothing of this one was kept."""


@dataclass(frozen=True)
class Result:
    """What a statement returned: names of the columns in lower case, and rows.

    Decimals come as Decimal, whole numbers as int, timestamps as naive datetimes in UTC, on every warehouse.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self.rows

    def fetchone(self) -> tuple[Any, ...] | None:
        """The first row, or None."""
        return self.rows[0] if self.rows else None

    def records(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def frame(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(self.columns))


class Warehouse(Protocol):
    """An open session of a warehouse. SQL is written once, in what the dialects have in common.

    `is_of_one_process` says that only one process at a time can have it open.
    """

    is_of_one_process: bool

    def execute(self, sql: str, parameters: Parameters = ()) -> Result:
        """Run one statement, and commit it.

        Args:
            sql: the statement, with parameters as ``?`` or ``$name``.
            parameters: their values, in order or by name.

        Raises:
            MissingObjectError: something it names is not there.
        """

    def transaction(self) -> AbstractContextManager[None]:
        """What the block executes is durable when it ends, all of it or, on any error, nothing.

        Raises:
            OpenTransactionError: a transaction is open already, so it would not be.
            BusyError: on leaving or inside, when another session changed the same rows meanwhile.
        """

    def landing(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A DuckDB connection that reads files, with the tables of the schema ``raw``.

        What the block adds to them is in the warehouse when the block ends, all of it or, on any error, nothing.
        It may roll back and begin again. Rows that landed before need not be visible in it.

        Raises:
            WarehouseError: on leaving, when the warehouse did not take the rows.
        """

    def copy_table(self, source: str, copy: str) -> None:
        """Create a table that holds what another holds; for a while, so that no history of it is needed."""

    def literal(self, text: str) -> str:
        """A text as an SQL literal."""

    def property_text(self, column: str, name: str) -> str:
        """SQL for a property as text, of a column that holds JSON; null where it is absent or null."""

    def needs_landing_tables(self, present: Collection[tuple[str, str]]) -> bool:
        """Whether the landing tables must be created first, going by the tables that this session sees."""

    def close(self) -> None: ...


class DuckDBWarehouse:
    """A DuckDB file, opened by this process."""

    is_of_one_process = True

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Parameters = ()) -> Result:
        values = parameters if isinstance(parameters, Mapping) else list(parameters)
        try:
            cursor = self._connection.execute(sql, values)
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            raise MissingObjectError(str(error)) from error
        return Result(tuple(column[0].lower() for column in cursor.description or ()), cursor.fetchall())

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            self._connection.execute("begin")
        except duckdb.TransactionException as error:
            raise OpenTransactionError("A transaction is open, so rows would not be durable.") from error
        try:
            yield
            self._connection.execute("commit")
        except duckdb.TransactionException as error:
            self._roll_back()
            raise BusyError(str(error)) from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        # A failed commit has ended the transaction already.
        with contextlib.suppress(duckdb.TransactionException):
            self._connection.execute("rollback")

    @contextlib.contextmanager
    def landing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self.transaction():
            yield self._connection

    def needs_landing_tables(self, present: Collection[tuple[str, str]]) -> bool:
        return not set(LANDING_TABLES).issubset(present)

    def copy_table(self, source: str, copy: str) -> None:
        self.execute(f"create table {copy} as select * from {source}")

    def literal(self, text: str) -> str:
        return "'" + text.replace("'", "''") + "'"

    def property_text(self, column: str, name: str) -> str:
        return f"json_extract_string({column}, " + self.literal(f'$."{name}"') + ")"

    def close(self) -> None:
        self._connection.close()


def append_rows(warehouse: Warehouse, table: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows, each given by column and all with the same columns. Durable when the open transaction, if any, ends."""
    for start in range(0, len(rows), ROWS_PER_INSERT):
        chunk = rows[start : start + ROWS_PER_INSERT]
        marks = f"({', '.join('?' for _ in chunk[0])})"
        warehouse.execute(
            f"insert into {table} ({', '.join(chunk[0])}) values {', '.join([marks] * len(chunk))}",
            [value for row in chunk for value in row.values()],
        )


def _open(settings: Settings) -> Warehouse:
    if settings.snowflake is not None:
        from orchestration.lib.snowflake_warehouse import open_snowflake

        return open_snowflake(settings.snowflake, settings.memory_limit)
    settings.database.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = duckdb.connect(str(settings.database))
    except duckdb.IOException as error:
        raise WarehouseError(
            f"{settings.database} cannot be opened: {error} If another process holds it, wait for that to end: "
            "DuckDB takes one writing process at a time."
        ) from error
    connection.execute("set TimeZone = 'UTC'")
    warehouse = DuckDBWarehouse(connection)
    warehouse.execute(f"set memory_limit = {warehouse.literal(settings.memory_limit)}")
    return warehouse


@contextlib.contextmanager
def connect(settings: Settings) -> Iterator[Warehouse]:
    """Open the warehouse, with its landing tables and sync log in place.

    The tables are defined once, in the dbt macro raw_and_ops_table_statements, which is read here without dbt: its
    start takes longer than many a load.

    Raises:
        WarehouseError: the DuckDB file is held by another process or is none, or Snowflake cannot be reached.
    """
    warehouse = _open(settings)
    try:
        if warehouse.needs_landing_tables(_tables(warehouse)):
            for statement in raw_and_ops_table_statements(settings.project):
                warehouse.execute(statement)
        yield warehouse
    finally:
        warehouse.close()


def raw_and_ops_table_statements(project: Path) -> list[str]:
    """The SQL statements that create the raw and ops tables where they are missing, from the dbt macro of that name."""
    statements: list[str] = []
    macro = (project / "macros" / "project" / "raw_and_ops_table_statements.sql").read_text(encoding="utf-8")
    Environment().from_string(macro, {"return": statements.extend}).module.raw_and_ops_table_statements()  # type: ignore[attr-defined]
    return statements


def _tables(warehouse: Warehouse) -> set[tuple[str, str]]:
    """Schema and name of the landing tables, logs, ledger and marts that this session sees, in lower case."""
    rows = warehouse.execute(
        " union ".join(
            f"select lower(table_schema), lower(table_name) from information_schema.{kind} "
            "where lower(table_schema) in ('raw', 'ops', 'ledger', 'marts')"
            for kind in ("tables", "views")
        )
    ).rows
    return {(schema, name) for schema, name in rows}


def require_marts(warehouse: Warehouse, *names: str) -> None:
    """Check that marts exist.

    Raises:
        MeteringError: one does not; the message says to build.
    """
    present = {name for schema, name in _tables(warehouse) if schema == "marts"}
    missing = [name for name in names if name not in present]
    if missing:
        raise MeteringError(f"The warehouse has no {', '.join(missing)} yet: run metering build first.")


@dataclass(frozen=True)
class Build:
    """A build of the present as ops.build_log has it.

    Attributes:
        invocation_id: dbt's, of this build alone.
        as_of: deliveries received until this instant were seen, UTC.
        price_book_hash: hash of its seeds; None where dbt did not know it.
        code_revision: revision of the project that it built; None where dbt's own command was used.
    """

    invocation_id: str
    as_of: datetime
    price_book_hash: str | None
    code_revision: str | None


def require_successful_build(warehouse: Warehouse) -> Build:
    """Check that the marts are those of a build that ended without a failure.

    A build that failed a test, died, or left something out has left marts that nobody vouches for.

    Returns:
        That build.

    Raises:
        MeteringError: the last build failed, did not end, was not of everything or not alone, or there was none.
    """
    row = warehouse.execute(
        """
        select
            started.logged_at,
            finished.failed_nodes,
            finished.is_whole,
            started.invocation_id,
            started.as_of,
            started.price_book_hash,
            started.code_revision
        from ops.build_log as started
        left join ops.build_log as finished
            on started.invocation_id = finished.invocation_id and finished.step = 'finished'
        where started.step = 'started'
        order by started.logged_at desc
        limit 1
        """
    ).fetchone()
    if row is None:
        raise MeteringError("Nothing has been built yet: run metering build first.")
    started_at, failed_nodes, is_whole, *logged = row
    if failed_nodes is None:
        raise MeteringError(f"The last build, of {started_at} UTC, did not end: run metering build again.")
    if failed_nodes > 0:
        raise MeteringError(
            f"The last build, of {started_at} UTC, failed in {failed_nodes} nodes: "
            "mend that and run metering build again."
        )
    if not is_whole:
        raise MeteringError(
            f"The last run of dbt, at {started_at} UTC, built or tested only a part, as dbt retry does, or without "
            "rows, so nobody vouches for the whole: run metering build."
        )
    build = Build(*logged)
    if not is_last_build(warehouse, build):
        raise MeteringError(
            f"Another build ended after the last, of {started_at} UTC, had begun, so the tables may be of both: "
            "run metering build again."
        )
    return build


def is_last_build(warehouse: Warehouse, build: Build) -> bool:
    """Whether no other build has begun or ended since this one began, so that the tables are those that it made."""
    ((others,),) = warehouse.execute(
        """
        select count(*)
        from ops.build_log as own
        inner join ops.build_log as other
            on own.invocation_id <> other.invocation_id and own.logged_at <= other.logged_at
        where own.invocation_id = ? and own.step = 'started'
        """,
        [build.invocation_id],
    ).rows
    return bool(others == 0)
