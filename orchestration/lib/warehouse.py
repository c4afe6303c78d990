"""Connections to the embedded warehouse."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import duckdb

from orchestration.lib.project import MeteringError, Settings, run_dbt

_LANDING_TABLES = {
    ("raw", "usage_events"),
    ("raw", "load_batches"),
    ("raw", "independent_totals"),
    ("ops", "build_log"),
    ("ops", "stripe_sync_log"),
}


def _open(settings: Settings) -> duckdb.DuckDBPyConnection:
    try:
        connection = duckdb.connect(str(settings.database))
    except duckdb.IOException as error:
        raise MeteringError(
            f"{settings.database} cannot be opened: {error} If another process holds it, wait for that to end: "
            "DuckDB takes one writing process at a time."
        ) from error
    connection.execute("set TimeZone = 'UTC'")
    return connection


@contextlib.contextmanager
def connect(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the warehouse, with its landing tables and sync log in place.

    The tables are defined once, in the dbt macro create_raw_and_ops_tables; where one is missing the macro is run.

    Raises:
        MeteringError: the file is held by another process or is no DuckDB file.
    """
    settings.database.parent.mkdir(parents=True, exist_ok=True)
    connection = _open(settings)
    present = set(connection.execute("select table_schema, table_name from information_schema.tables").fetchall())
    if not present >= _LANDING_TABLES:
        connection.close()
        run_dbt(settings, "run-operation", "create_raw_and_ops_tables", quiet=True)
        connection = _open(settings)
    try:
        yield connection
    finally:
        connection.close()


def require_marts(connection: duckdb.DuckDBPyConnection, *names: str) -> None:
    """Check that marts exist.

    Raises:
        MeteringError: one does not; the message says to build.
    """
    present = {
        name
        for (name,) in connection.execute(
            "select table_name from information_schema.tables where table_schema = 'marts'"
        ).fetchall()
    }
    missing = [name for name in names if name not in present]
    if missing:
        raise MeteringError(f"The warehouse has no {', '.join(missing)} yet: run metering build first.")


def require_successful_build(connection: duckdb.DuckDBPyConnection) -> None:
    """Check that the marts are those of a build that ended without a failure.

    A build that failed a test, or died, has left marts that nobody vouches for.

    Raises:
        MeteringError: the last build failed, did not end, was not of everything, or there was none.
    """
    row = connection.execute(
        """
        select
            started.logged_at,
            started.is_whole,
            finished.failed_nodes
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
    started_at, is_whole, failed_nodes = row
    if not is_whole:
        raise MeteringError(
            f"The last run of dbt, at {started_at} UTC, built or tested only a part, so nobody vouches for the whole: "
            "run metering build."
        )
    if failed_nodes is None:
        raise MeteringError(f"The last build, of {started_at} UTC, did not end: run metering build again.")
    if failed_nodes > 0:
        raise MeteringError(
            f"The last build, of {started_at} UTC, failed in {failed_nodes} nodes: "
            "mend that and run metering build again."
        )
