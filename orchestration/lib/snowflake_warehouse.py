"""Snowflake through its Python connector."""

from __future__ import annotations

import contextlib
import re
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import snowflake.connector
from dbt_common.exceptions import DbtRuntimeError
from snowflake.connector.errors import Error, ProgrammingError

from orchestration.lib.warehouse import (
    LANDING_TABLES,
    MissingObjectError,
    Parameters,
    Result,
    WarehouseError,
)

if TYPE_CHECKING:
    from dbt.adapters.snowflake.connections import SnowflakeCredentials
    from snowflake.connector import SnowflakeConnection

_LOGIN_SECONDS = 60
# Without a limit the connector tries again for ever while a server answers with errors.
_NETWORK_SECONDS = 300
# Snowflake's advice for loading is files of 100 to 250 MB, compressed ("Preparing your data files").
_CHUNK_BYTES = 128 * 1024 * 1024
# Object does not exist or not authorized; invalid identifier; no such object for this operation.
_MISSING = (2003, 904, 2043)
_DUCKDB_TYPES = {("NUMBER", 0): "bigint", ("NUMBER", 9): "decimal(38, 9)", ("TIMESTAMP_NTZ", None): "timestamp"}


def open_snowflake(credentials: SnowflakeCredentials, memory_limit: str) -> SnowflakeWarehouse:
    """Connect as dbt does, with UTC as the session's time zone.

    Args:
        credentials: what the dbt profile has.
        memory_limit: of the DuckDB that reads files to be landed, such as ``8GB``.

    Raises:
        WarehouseError: the private key cannot be read, or the account cannot be reached or refuses the user or role.
    """
    try:
        authentication: dict[str, Any] = credentials.auth_args()  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TypeError, DbtRuntimeError) as error:
        # Which of these it is depends on what is wrong with the file or its passphrase. None repeats a secret.
        raise WarehouseError(
            f"The private key of {credentials.user} ({credentials.private_key_path}) cannot be used: {error} "
            "Check SNOWFLAKE_PRIVATE_KEY_PATH and SNOWFLAKE_PRIVATE_KEY_PASSPHRASE."
        ) from error
    try:
        connection = snowflake.connector.connect(
            account=credentials.account,
            database=credentials.database,
            schema=credentials.schema,
            warehouse=credentials.warehouse or None,
            role=credentials.role or None,
            application="warehouse_metering",
            paramstyle="qmark",
            # Whatever the account's default: a row of the sync log is durable when its insert returns.
            autocommit=True,
            login_timeout=_LOGIN_SECONDS,
            network_timeout=_NETWORK_SECONDS,
            session_parameters={
                "TIMEZONE": "UTC",
                "TIMESTAMP_TYPE_MAPPING": "TIMESTAMP_NTZ",
                "QUERY_TAG": credentials.query_tag or "",
            },
            **authentication,
        )
    except Error as error:
        raise WarehouseError(
            f"Snowflake account {credentials.account} cannot be used as {credentials.user}: {error.raw_msg} "
            "Check the SNOWFLAKE_ variables that profiles/profiles.yml names, the role's grants and the network."
        ) from error
    return SnowflakeWarehouse(connection, memory_limit)


class SnowflakeWarehouse:
    """A session of Snowflake. Outside of landing each statement commits by itself."""

    is_of_one_process = False

    def __init__(self, connection: SnowflakeConnection, memory_limit: str) -> None:
        self._connection = connection
        self._memory_limit = memory_limit

    def execute(self, sql: str, parameters: Parameters = ()) -> Result:
        statement, values = with_question_marks(sql, parameters)
        with self._connection.cursor() as cursor:
            try:
                cursor.execute(statement, values or None)
                rows: list[Any] = cursor.fetchall()
            except ProgrammingError as error:
                kind = MissingObjectError if error.errno in _MISSING else WarehouseError
                raise kind(_describe(error)) from error
            except Error as error:
                raise WarehouseError(_describe(error)) from error
            return Result(tuple(column.name.lower() for column in cursor.description or ()), rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """As the interface says. A statement that changes rows waits for the session that holds their lock."""
        self.execute("begin")
        try:
            yield
        except BaseException:
            self.execute("rollback")
            raise
        self.execute("commit")

    @contextlib.contextmanager
    def landing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """As the interface says. Rows go through a DuckDB file and Parquet files of bounded size in a temporary folder.

        The Parquet files are put on a temporary stage and copied in one transaction. A process that dies in between
        leaves nothing in the tables: Snowflake rolls the transaction back, and drops the stage and its files with the
        session. Where the answer to the commit is lost the rows may have landed; landing the file again is safe, since
        copies of an event count once. The file names that COPY remembers are new each time, and nothing relies on them.
        """
        with tempfile.TemporaryDirectory(prefix="metering-landing-") as folder:
            reader = duckdb.connect(str(Path(folder) / "landing.duckdb"), config={"memory_limit": self._memory_limit})
            with reader as rows:
                rows.execute("set TimeZone = 'UTC'")
                tables = self._create_tables(rows)
                rows.execute("begin")
                yield rows
                rows.execute("commit")
                files = {table: _write_parquet(rows, table, Path(folder) / table) for table in tables}
                counts = {table: _count(rows, table) for table in tables if files[table]}
            self._copy(files, counts)

    def _create_tables(self, rows: duckdb.DuckDBPyConnection) -> list[str]:
        """Create the tables that files are landed in, as Snowflake has them; their names."""
        columns = self.execute(
            """
            select lower(table_name), lower(column_name), data_type, numeric_scale
            from information_schema.columns
            where lower(table_schema) = 'raw'
            order by table_name, ordinal_position
            """
        ).rows
        tables: dict[str, list[str]] = {table: [] for schema, table in LANDING_TABLES if schema == "raw"}
        for table, column, data_type, scale in columns:
            if table in tables:
                tables[table].append(f"{column} {_DUCKDB_TYPES.get((data_type, scale), 'varchar')}")
        rows.execute("create schema raw")
        for table, definitions in tables.items():
            rows.execute(f"create table raw.{table} ({', '.join(definitions)})")
        return list(tables)

    def _copy(self, files: Mapping[str, list[Path]], counts: Mapping[str, int]) -> None:
        stage = f"raw.metering_landing_{uuid.uuid4().hex}"
        self.execute(f"create temporary stage {stage}")
        try:
            for table in counts:
                for path in files[table]:
                    # The path as it is: the connector decodes no percent signs.
                    source = self.literal(f"file://{path.as_posix()}")
                    self.execute(f"put {source} @{stage}/{table}/ auto_compress = false")
            with self.transaction():
                for table, count in counts.items():
                    self._copy_table(stage, table, count)
        finally:
            # It goes with the session anyway; what was copied, or the error, matters more.
            with contextlib.suppress(WarehouseError):
                self.execute(f"drop stage if exists {stage}")

    def _copy_table(self, stage: str, table: str, count: int) -> None:
        # Logical types, or timestamps are read as seconds. No NULL_IF, or the text \N becomes null.
        copied = self.execute(
            f"""
            copy into raw.{table}
            from @{stage}/{table}/
            file_format = (type = parquet use_logical_type = true null_if = ())
            match_by_column_name = case_insensitive
            on_error = abort_statement
            """
        ).records()
        loaded = sum(file["rows_loaded"] for file in copied)
        if loaded != count:
            raise WarehouseError(f"COPY INTO raw.{table} took {loaded} rows of {count}; nothing was landed.")

    def needs_landing_tables(self, present: Collection[tuple[str, str]]) -> bool:
        # A role sees what it may use: the loader no marts, a reader no raw tables. Only a new database shows nothing.
        return not present

    def copy_table(self, source: str, copy: str) -> None:
        self.execute(f"create transient table {copy} clone {source}")

    def literal(self, text: str) -> str:
        # A backslash escapes what follows it ("String and binary data types", escape sequences).
        return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"

    def property_text(self, column: str, name: str) -> str:
        return f"cast(get(parse_json({column}), {self.literal(name)}) as varchar)"

    def close(self) -> None:
        self._connection.close()


def with_question_marks(sql: str, parameters: Parameters) -> tuple[str, list[object]]:
    """A statement whose named parameters (``$name``) are ``?``, and the values in the order of the marks.

    Dollar signs in literals and comments are left alone.
    """
    if not isinstance(parameters, Mapping):
        return sql, list(parameters)
    values: list[object] = []

    def mark(found: re.Match[str]) -> str:
        if found["name"] is None:
            return found.group()
        values.append(parameters[found["name"]])
        return "?"

    return re.sub(r"'(?:[^']|'')*'|--[^\n]*|\$(?P<name>[a-z_]\w*)", mark, sql), values


def _describe(error: Error) -> str:
    """What Snowflake said, and the query's id, under which its history has the statement."""
    query = f" (query {error.sfqid})" if error.sfqid else ""
    return f"Snowflake: {error.raw_msg or error.msg}{query}"


def _count(rows: duckdb.DuckDBPyConnection, table: str) -> int:
    row = rows.execute(f"select count(*) from raw.{table}").fetchone()
    assert row is not None
    return int(row[0])


def _write_parquet(rows: duckdb.DuckDBPyConnection, table: str, folder: Path) -> list[Path]:
    """Write a table as Parquet files of bounded size; none when it is empty."""
    if _count(rows, table) == 0:
        return []
    rows.execute(
        f"copy raw.{table} to $folder (format parquet, file_size_bytes {_CHUNK_BYTES}, per_thread_output false)",
        {"folder": str(folder)},
    )
    return sorted(folder.glob("*.parquet"))
