"""The same work in PostgreSQL: JSONB, a unique index on the idempotency key, insert … on conflict do nothing.

PostgreSQL lands, judges, counts once, aggregates and rolls up to service periods; the last step, some thousand rows of
usage into lines, is the one of benchmarks.rating for every engine. The server is a private cluster in a temporary
folder, reached through a socket in that folder only, tuned for loading and without any durability: fsync,
synchronous_commit and full_page_writes are off, the tables that need not last are unlogged, one file is one statement.

Run as a module in a process of its own; the last line of its output is the seconds of each stage as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb

from benchmarks.process_memory import PeakMemory, watch_memory
from benchmarks.rating import create_reference_tables, rate
from benchmarks.stages import Stages

_START_SECONDS = 60
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "shared_buffers": "2GB",
    "work_mem": "512MB",
    "maintenance_work_mem": "1GB",
    "max_parallel_workers_per_gather": str(os.cpu_count() or 2),
    "timezone": "UTC",
    "jit": "off",
}

_TABLES = """
    create unlogged table lines (line_number bigint generated always as identity, line text);
    create unlogged table raw_usage_events (
        batch_id integer not null, line_number bigint not null, source text not null, received_at timestamp not null,
        idempotency_key text, event_type text, schema_version text, customer_id text, occurred_at text,
        properties jsonb, corrects text, correction text, landing_error_code text, landing_error text, raw_record text
    );
    create unlogged table usage_events (
        batch_id integer not null, line_number bigint not null, idempotency_key text not null, event_type text not null,
        customer_id text not null, occurred_at timestamp not null, properties jsonb not null
    );
    create unique index usage_events_idempotency_key on usage_events (idempotency_key);
    create unlogged table duplicates (batch_id integer, line_number bigint, idempotency_key text, is_conflict boolean);
    create unlogged table rejected (batch_id integer, line_number bigint, reason_codes text);
    -- Before PostgreSQL 16 only an exception tells whether text is JSON, which is slow for every line.
    create function try_jsonb(line text) returns jsonb language plpgsql immutable as
        $$ begin return line::jsonb; exception when others then return null; end $$;
"""

# A line is cast at once when it looks whole; the others, few, go through the function that catches the error.
_LAND_FILE = r"""
    truncate lines restart identity;
    \copy lines (line) from '{path}' with (format csv, quote e'\x02', delimiter e'\x01')
    insert into raw_usage_events
    select
        {batch_id}, line_number, '{path}', clock_timestamp() at time zone 'UTC',
        event ->> 'idempotency_key', event ->> 'event_type', event ->> 'schema_version', event ->> 'customer_id',
        event ->> 'occurred_at', event -> 'properties', event ->> 'corrects', event ->> 'correction',
        case when event is null then 'unparseable_json' end,
        case when event is null then 'line ' || line_number || ' is not a JSON object: ' || left(line, 100) end,
        case when event is null then line end
    from (
        select line_number, line, case when line like '%}}}}' then line::jsonb else try_jsonb(line) end as event
        from lines
        offset 0
    ) as parsed;
"""

# A timestamp is cast where it looks like one: a 30th of February would end the run.
_JUDGE_FILE = """
    create unlogged table judged as
    with typed as (
        select
            raw_usage_events.*,
            case
                when
                    raw_usage_events.occurred_at
                    ~ '^\\d{{4}}-(0[1-9]|1[0-2])-([0-2]\\d|3[01])T\\d{{2}}:\\d{{2}}:\\d{{2}}([.]\\d{{1,9}})?Z$'
                    then raw_usage_events.occurred_at::timestamptz at time zone 'UTC'
            end as occurred_at_utc,
            customers.customer_id as known_customer_id
        from raw_usage_events
        left join customers on raw_usage_events.customer_id = customers.customer_id
        where batch_id = {batch_id}
    )
    select
        *,
        coalesce(
            landing_error_code is null and trim(idempotency_key) <> '' and schema_version = '1'
            and known_customer_id is not null and corrects is null and correction is null
            and occurred_at_utc <= received_at + interval '5 minutes'
            and case event_type
                when 'llm_request' then
                    properties ->> 'service' in ('conversation', 'code')
                    and jsonb_typeof(properties -> 'context_tokens') = 'number'
                    and (properties ->> 'context_tokens')::numeric between 0 and 10000000
                    and (properties ->> 'context_tokens')::numeric % 1 = 0
                    and jsonb_typeof(properties -> 'generated_tokens') = 'number'
                    and (properties ->> 'generated_tokens')::numeric between 0 and 10000000
                    and (properties ->> 'generated_tokens')::numeric % 1 = 0
                    and coalesce(properties ->> 'model', 'small') in ('small', 'large')
                when 'assistant_session' then
                    jsonb_typeof(properties -> 'user_id') = 'string'
                    and jsonb_typeof(properties -> 'duration_seconds') = 'number'
                    and (properties ->> 'duration_seconds')::numeric between 0 and 86400
            end,
            false
        ) as is_valid
    from typed;

    insert into usage_events
    select batch_id, line_number, idempotency_key, event_type, customer_id, occurred_at_utc, properties
    from judged
    where is_valid
    order by line_number
    on conflict (idempotency_key) do nothing;

    insert into duplicates
    select
        judged.batch_id,
        judged.line_number,
        judged.idempotency_key,
        judged.event_type <> counted.event_type or judged.customer_id <> counted.customer_id
        or judged.occurred_at_utc <> counted.occurred_at or judged.properties <> counted.properties
    from judged
    inner join usage_events as counted
        on
            judged.idempotency_key = counted.idempotency_key
            and (judged.batch_id, judged.line_number) <> (counted.batch_id, counted.line_number)
    where is_valid;

    insert into rejected
    select
        batch_id,
        line_number,
        concat_ws(
            '|',
            landing_error_code,
            case when landing_error_code is null and (
                idempotency_key is null or event_type is null or schema_version is null
                or customer_id is null or occurred_at is null
            ) then 'missing_required_field' end,
            case when event_type not in ('llm_request', 'assistant_session') then 'unknown_event_type' end,
            case when schema_version <> '1' then 'unknown_schema_version' end,
            case when customer_id is not null and known_customer_id is null then 'unknown_customer' end,
            case when occurred_at is not null and occurred_at_utc is null then 'unparseable_timestamp' end,
            case when occurred_at_utc > received_at + interval '5 minutes' then 'timestamp_in_future' end,
            case when corrects is not null or correction is not null then 'unsupported_correction' end,
            case
                when
                    event_type in ('llm_request', 'assistant_session') and schema_version = '1'
                    and known_customer_id is not null and occurred_at_utc is not null and idempotency_key is not null
                    then 'invalid_property'
            end
        )
    from judged
    where not is_valid;

    drop table judged;
"""

_AGGREGATE = """
    create unlogged table requests_hourly as
    select
        usage_events.customer_id,
        properties ->> 'service' as service,
        properties ->> 'model' as model,
        (extract(epoch from occurred_at) * 1000000)::bigint / window_us * window_us as window_start_us,
        count(*) as requests,
        sum((properties ->> 'context_tokens')::bigint) as context_tokens,
        sum((properties ->> 'generated_tokens')::bigint) as generated_tokens,
        max((properties ->> 'context_tokens')::bigint) as longest_context,
        min(occurred_at) as first_event_at,
        max(occurred_at) as last_event_at
    from usage_events
    inner join customers on usage_events.customer_id = customers.customer_id
    where event_type = 'llm_request'
    group by 1, 2, 3, 4;

    create unlogged table sessions_hourly as
    select
        usage_events.customer_id,
        properties ->> 'user_id' as user_id,
        (extract(epoch from occurred_at) * 1000000)::bigint / window_us * window_us as window_start_us,
        count(*) as sessions,
        sum((properties ->> 'duration_seconds')::numeric) as session_seconds,
        min(occurred_at) as first_event_at,
        max(occurred_at) as last_event_at
    from usage_events
    inner join customers on usage_events.customer_id = customers.customer_id
    where event_type = 'assistant_session'
    group by 1, 2, 3;
"""

_ROLL_UP = r"""
    \copy (select segment_id, service, sum(requests) as requests, sum(context_tokens) as context_tokens, sum(generated_tokens) as generated_tokens, max(longest_context) as longest_context from requests_hourly as hourly left join segments on hourly.customer_id = segments.customer_id and window_start_us >= start_us and window_start_us < end_us group by 1, 2) to '{folder}/requests_by_segment.csv' with (format csv, header)
    \copy (select period_id, sum(sessions) as sessions, sum(session_seconds) as session_seconds, count(distinct user_id) as users from sessions_hourly as hourly left join service_periods as periods on hourly.customer_id = periods.customer_id and window_start_us >= start_us and window_start_us < end_us group by 1) to '{folder}/sessions_by_period.csv' with (format csv, header)
"""  # noqa: E501  (\copy takes one line)


class MissingProgramError(Exception):
    """PostgreSQL is not installed; the text says what to install."""


def find_programs() -> Path:
    """The folder of PostgreSQL's server programs, of the newest version there is.

    Raises:
        MissingProgramError: there is none.
    """
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not folders:
        raise MissingProgramError("PostgreSQL is not installed: apt-get install postgresql")
    return max(folders, key=lambda folder: int(folder.parent.name))


class Cluster:
    """A private PostgreSQL server, as another user where this one is root, which PostgreSQL refuses."""

    def __init__(self, folder: Path) -> None:
        self._programs = find_programs()
        self._data = folder / "data"
        self.folder = folder
        self.memory = PeakMemory()
        self._user = "postgres" if os.geteuid() == 0 else None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start the server, and end it with everything that it wrote."""
        self.folder.mkdir(parents=True)
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._call(self._programs / "initdb", "-D", self._data, "-U", "bench", "--auth", "trust", "--encoding", "UTF8")
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("w") as log:
            server = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-k", self.folder, *settings],
                stdout=log, stderr=log, user=self._user, cwd=self.folder,
            )  # fmt: skip
        try:
            self._wait(server)
            with watch_memory(server.pid) as self.memory:
                yield
        finally:
            server.terminate()
            try:
                server.wait(timeout=_START_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            shutil.rmtree(self.folder)

    def execute(self, sql: str) -> str:
        """Run a script of SQL and psql's own commands; the first error ends it."""
        return self._call(
            self._programs / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1",
            "-h", self.folder, "-U", "bench", "-d", "postgres", "-f", "-", standard_input=sql,
        )  # fmt: skip

    def _wait(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        ready: list[str | Path] = [self._programs / "pg_isready", "-q", "-h", self.folder]
        while subprocess.run(ready, check=False).returncode != 0:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def _call(self, *command: str | Path, standard_input: str = "") -> str:
        done = subprocess.run(
            command, input=standard_input, text=True, capture_output=True, user=self._user, cwd=self.folder, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr[-2000:]}")
        return done.stdout


def build(database: Path, folder: Path, files: Sequence[Path]) -> dict[str, object]:
    """Land the files and build everything from them; the lines end in a DuckDB file.

    Args:
        database: DuckDB file for reference tables and lines.
        folder: for the cluster and what it exports; must not exist.
        files: readable for the server's user.

    Returns:
        Seconds of each stage, outcomes of the deliveries, version of the server and its peak memory.
    """
    stages = Stages()
    cluster = Cluster(folder)
    with duckdb.connect(str(database)) as connection, cluster.running():
        connection.execute("set TimeZone = 'UTC'")
        create_reference_tables(connection)
        cluster.execute(_TABLES + _reference_sql(connection))
        for batch_id, path in enumerate(files):
            with stages.measure("land"):
                cluster.execute(_LAND_FILE.format(path=path, batch_id=batch_id))
            with stages.measure("judge and count once"):
                cluster.execute(_JUDGE_FILE.format(batch_id=batch_id))
        with stages.measure("aggregate"):
            cluster.execute("analyze usage_events;")
            cluster.execute(_AGGREGATE)
            cluster.execute(_ROLL_UP.format(folder=folder))
        with stages.measure("rate"):
            for name in ("requests_by_segment", "sessions_by_period"):
                connection.execute(
                    f"create table {name} as select * from read_csv('{folder / name}.csv', header = true)"
                )
            rate(connection)
        outcomes = cluster.execute(
            "select (select count(*) from raw_usage_events), (select count(*) from usage_events), "
            "(select count(*) from duplicates), (select count(*) from rejected), "
            "(select count(*) from duplicates where is_conflict);"
        )
        version = cluster.execute("show server_version;").split()[0]
    return {
        "stages": stages.seconds,
        "outcomes": [int(count) for count in outcomes.split("|")],
        "version": version,
        "peak_memory_bytes": cluster.memory.bytes,
    }


def _reference_sql(connection: duckdb.DuckDBPyConnection) -> str:
    """Customers, service periods and segments as statements."""
    statements = []
    for table, columns, query in (
        ("customers", "customer_id text primary key, window_us bigint", "select customer_id, window_us from customers"),
        (
            "service_periods",
            "period_id integer, customer_id text, start_us bigint, end_us bigint",
            "select period_id, customer_id, epoch_us(period_start_at), epoch_us(period_end_at) from service_periods",
        ),
        (
            "segments",
            "segment_id integer, customer_id text, start_us bigint, end_us bigint",
            "select segment_id, customer_id, epoch_us(segment_start_at), epoch_us(segment_end_at) from segments",
        ),
    ):
        rows = ", ".join(
            "(" + ", ".join(f"'{value}'" for value in row) + ")" for row in connection.execute(query).fetchall()
        )
        statements.append(f"create table {table} ({columns}); insert into {table} values {rows}; analyze {table};")
    return "\n".join(statements)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.postgres", description="Build in PostgreSQL.")
    parser.add_argument("database", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    # Ended from outside, it still ends its server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(json.dumps(build(arguments.database, arguments.folder, arguments.files)))


if __name__ == "__main__":
    main()
