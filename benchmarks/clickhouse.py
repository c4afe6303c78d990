"""The same work in ClickHouse's engine, embedded (chdb): MergeTree tables, copies found by hash as in the floor.

ClickHouse has no unique keys, so counting once is a query here as it is in DuckDB. It lands, judges, counts once,
aggregates and rolls up to service periods; the last step, some thousand rows of usage into lines, is the one of
benchmarks.rating for every engine.

Run as a module in a process of its own; the last line of its output is the seconds of each stage as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import duckdb

from benchmarks.rating import create_reference_tables, rate
from benchmarks.stages import Stages

_FIELDS = ", ".join(
    f"{name} String"
    for name in (
        "idempotency_key", "event_type", "schema_version", "customer_id",
        "occurred_at", "properties", "corrects", "correction",
    )
)  # fmt: skip
_PROPERTIES = (
    "service String, model String, user_id Nullable(String), context_tokens Nullable(String), "
    "generated_tokens Nullable(String), duration_seconds Nullable(String)"
)

_RAW_TABLE = """
    create table raw_usage_events (
        batch_id UInt32, line_number UInt64, source LowCardinality(String), received_at DateTime64(6, 'UTC'),
        idempotency_key String, event_type LowCardinality(String), schema_version LowCardinality(String),
        customer_id LowCardinality(String), occurred_at String, properties String, corrects String, correction String,
        landing_error_code LowCardinality(String), landing_error String, raw_record String
    ) engine = MergeTree order by (batch_id, line_number)
"""

# A field that is missing is an empty string here, which is rejected all the same.
_LAND_FILE = """
    insert into raw_usage_events
    select
        {batch_id}, line_number, '{path}', now64(6),
        e.1, e.2, e.3, e.4, e.5, e.6, e.7, e.8,
        if(is_object, '', 'unparseable_json'),
        if(is_object, '', concat('line ', toString(line_number), ' is not a JSON object: ', left(line, 100))),
        if(is_object, '', line)
    from (
        select
            rowNumberInAllBlocks() + 1 as line_number,
            line,
            isValidJSON(line) as is_object,
            JSONExtract(
                line,
                'Tuple({fields})'
            ) as e
        from file('{path}', LineAsString)
    )
"""

_JUDGE = [
    """
    create table deliveries (
        batch_id UInt32, line_number UInt64, idempotency_key String, content_hash UInt64,
        event_type LowCardinality(String), customer_id LowCardinality(String),
        occurred_at Nullable(DateTime64(6, 'UTC')), service LowCardinality(String),
        model LowCardinality(String), context_tokens Int32, generated_tokens Int32,
        user_id String, duration_seconds Decimal(18, 9), is_valid UInt8, reason_codes String
    ) engine = MergeTree order by (batch_id, line_number)
    """,
    f"""
    insert into deliveries
    with
        parseDateTime64BestEffortOrNull(occurred_at, 6, 'UTC') as instant,
        JSONExtract(
            properties,
            'Tuple({_PROPERTIES})'
        ) as p,
        toDecimal64OrNull(p.context_tokens, 9) as context,
        toDecimal64OrNull(p.generated_tokens, 9) as generated,
        toDecimal64OrNull(p.duration_seconds, 9) as duration,
        startsWith(JSONExtractRaw(properties, 'user_id'), '"') as is_user_text,
        customer_id in (select customer_id from customers) as is_known_customer,
        landing_error_code = '' and trim(idempotency_key) <> '' and schema_version = '1' and is_known_customer
        and instant is not null and instant <= received_at + interval 5 minute and corrects = '' and correction = ''
            as is_envelope_valid,
        is_envelope_valid and multiIf(
            event_type = 'llm_request',
            p.service in ('conversation', 'code') and p.model in ('', 'small', 'large')
            and ifNull(context between 0 and 10000000 and context = floor(context), 0)
            and ifNull(generated between 0 and 10000000 and generated = floor(generated), 0),
            event_type = 'assistant_session',
            is_user_text and ifNull(duration between 0 and 86400, 0),
            0
        ) as is_ok
    select
        batch_id, line_number, idempotency_key,
        cityHash64(event_type, schema_version, customer_id, occurred_at, properties),
        event_type, customer_id, instant, p.service, p.model,
        toInt32(ifNull(context, 0)), toInt32(ifNull(generated, 0)), ifNull(p.user_id, ''), ifNull(duration, 0),
        is_ok,
        if(is_ok, '', arrayStringConcat(arrayFilter(reason -> reason <> '', [
            landing_error_code,
            if(
                landing_error_code = ''
                and (
                    idempotency_key = '' or event_type = '' or schema_version = '' or customer_id = ''
                    or occurred_at = ''
                ),
                'missing_required_field', ''
            ),
            if(event_type not in ('', 'llm_request', 'assistant_session'), 'unknown_event_type', ''),
            if(schema_version not in ('', '1'), 'unknown_schema_version', ''),
            if(customer_id <> '' and not is_known_customer, 'unknown_customer', ''),
            if(occurred_at <> '' and instant is null, 'unparseable_timestamp', ''),
            if(ifNull(instant > received_at + interval 5 minute, 0), 'timestamp_in_future', ''),
            if(corrects <> '' or correction <> '', 'unsupported_correction', ''),
            if(is_envelope_valid and event_type in ('llm_request', 'assistant_session'), 'invalid_property', '')
        ]), '|'))
    from raw_usage_events
    """,
]

_COUNT_ONCE = """
    create table copies engine = MergeTree order by (batch_id, line_number) as
    select batch_id, line_number, content_hash <> first_hash as is_conflict
    from (
        select
            batch_id,
            line_number,
            content_hash,
            row_number() over (partition by idempotency_key order by batch_id, line_number) as arrival,
            first_value(content_hash) over (partition by idempotency_key order by batch_id, line_number) as first_hash
        from deliveries
        where is_valid and cityHash64(idempotency_key) in (
            select cityHash64(idempotency_key) as key_hash
            from deliveries
            where is_valid
            group by key_hash
            having count() > 1
        )
    )
    where arrival > 1
"""

_AGGREGATE = [
    """
    create table requests_hourly engine = MergeTree order by (customer_id, window_start_us) as
    select
        customer_id, service, model,
        intDiv(toUnixTimestamp64Micro(assumeNotNull(occurred_at)), window_us) * window_us as window_start_us,
        count() as requests, sum(context_tokens) as context_tokens, sum(generated_tokens) as generated_tokens,
        max(deliveries.context_tokens) as longest_context,
        min(occurred_at) as first_event_at, max(occurred_at) as last_event_at
    from deliveries
    inner join customers on deliveries.customer_id = customers.customer_id
    where
        is_valid and event_type = 'llm_request'
        and (batch_id, line_number) not in (select batch_id, line_number from copies)
    group by customer_id, service, model, window_start_us
    """,
    """
    create table sessions_hourly engine = MergeTree order by (customer_id, window_start_us) as
    select
        customer_id, user_id,
        intDiv(toUnixTimestamp64Micro(assumeNotNull(occurred_at)), window_us) * window_us as window_start_us,
        count() as sessions, sum(duration_seconds) as session_seconds,
        min(occurred_at) as first_event_at, max(occurred_at) as last_event_at
    from deliveries
    inner join customers on deliveries.customer_id = customers.customer_id
    where
        is_valid and event_type = 'assistant_session'
        and (batch_id, line_number) not in (select batch_id, line_number from copies)
    group by customer_id, user_id, window_start_us
    """,
]

# Usage outside of any subscription matches no segment and is left out of the lines, as it is by the others.
_ROLL_UP = {
    "requests_by_segment": """
        select
            segment_id, service, sum(requests) as requests, sum(context_tokens) as context_tokens,
            sum(generated_tokens) as generated_tokens, max(longest_context) as longest_context
        from requests_hourly
        inner join segments on requests_hourly.customer_id = segments.customer_id
        where window_start_us >= start_us and window_start_us < end_us
        group by segment_id, service
    """,
    "sessions_by_period": """
        select
            period_id, sum(sessions) as sessions, sum(session_seconds) as session_seconds, uniqExact(user_id) as users
        from sessions_hourly
        inner join service_periods on sessions_hourly.customer_id = service_periods.customer_id
        where window_start_us >= start_us and window_start_us < end_us
        group by period_id
    """,
}


def build(database: Path, folder: Path, files: Sequence[Path]) -> dict[str, object]:
    """Land the files and build everything from them; the lines end in a DuckDB file.

    Args:
        database: DuckDB file for reference tables and lines.
        folder: for ClickHouse's tables and what it exports; must not exist.
        files: of events.

    Returns:
        Seconds of each stage, outcomes of the deliveries and version of the engine.
    """
    # Installed for benchmarks only.
    from chdb.session import Session

    stages = Stages()
    folder.mkdir(parents=True)
    session = Session(str(folder / "data"))
    with duckdb.connect(str(database)) as connection:
        connection.execute("set TimeZone = 'UTC'")
        create_reference_tables(connection)
        session.query("create database bench; use bench")
        for statement in (*_reference_statements(connection), _RAW_TABLE):
            session.query(statement)
        with stages.measure("land"):
            for batch_id, path in enumerate(files):
                session.query(_LAND_FILE.format(path=path, batch_id=batch_id, fields=_FIELDS))
        with stages.measure("judge and count once"):
            for statement in (*_JUDGE, _COUNT_ONCE):
                session.query(statement)
        with stages.measure("aggregate"):
            for statement in _AGGREGATE:
                session.query(statement)
            for name, query in _ROLL_UP.items():
                (folder / f"{name}.parquet").write_bytes(session.query(query, "Parquet").bytes())
        with stages.measure("rate"):
            for name in _ROLL_UP:
                connection.execute(f"create table {name} as select * from read_parquet('{folder / name}.parquet')")
            rate(connection)
        outcomes = str(
            session.query(
                """
                select
                    (select count() from raw_usage_events),
                    (select countIf(is_valid) from deliveries) - count(),
                    count(),
                    (select countIf(not is_valid) from deliveries), countIf(is_conflict)
                from copies
                """,
                "TabSeparated",
            )
        )
        version = str(session.query("select version()", "TabSeparated")).strip()
    session.close()
    return {"stages": stages.seconds, "outcomes": [int(count) for count in outcomes.split()], "version": version}


def _reference_statements(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Customers, service periods and segments as statements."""
    statements = []
    for table, columns, query in (
        ("customers", "customer_id String, window_us Int64", "select customer_id, window_us from customers"),
        (
            "service_periods",
            "period_id Int32, customer_id String, start_us Int64, end_us Int64",
            "select period_id, customer_id, epoch_us(period_start_at), epoch_us(period_end_at) from service_periods",
        ),
        (
            "segments",
            "segment_id Int32, customer_id String, start_us Int64, end_us Int64",
            "select segment_id, customer_id, epoch_us(segment_start_at), epoch_us(segment_end_at) from segments",
        ),
    ):
        rows = ", ".join(str(tuple(row)) for row in connection.execute(query).fetchall())
        statements += [f"create table {table} ({columns}) engine = Memory", f"insert into {table} values {rows}"]
    return statements


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clickhouse", description="Build with chdb.")
    parser.add_argument("database", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    print(json.dumps(build(arguments.database, arguments.folder, arguments.files)))


if __name__ == "__main__":
    main()
