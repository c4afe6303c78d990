"""The bare-SQL floor in DuckDB: land, judge, count once, aggregate, rate, for the sample catalog and nothing else.

Nothing can be configured, no rule is read from a table, no state is kept for a later run. What a good engineer would do
for speed is done: two files at a time, each JSON document parsed once, short types, copies found by hash, one scan for
all metrics of an event type.

Run as a module in a process of its own; the last line of its output is the seconds of each stage as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb

from benchmarks.rating import create_reference_tables, rate
from benchmarks.stages import Stages

_RAW_TABLE = """
    create table raw_usage_events (
        batch_id integer not null, line_number bigint not null, source varchar not null, received_at timestamp not null,
        idempotency_key varchar, event_type varchar, schema_version varchar, customer_id varchar, occurred_at varchar,
        properties varchar, corrects varchar, correction varchar, landing_error_code varchar, landing_error varchar,
        raw_record varchar
    )
"""

_LAND_FILE = r"""
    insert into raw_usage_events
    select
        $batch_id, line_number, $path, get_current_timestamp()::timestamp,
        f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8],
        case when f is null then 'unparseable_json' end,
        case when f is null then 'line ' || line_number || ' is not a JSON object: ' || left(line, 100) end,
        case when f is null then line end
    from (
        select
            line_number,
            line,
            case
                when json_valid(line) then json_extract_string(line, [
                    '$.idempotency_key', '$.event_type', '$.schema_version', '$.customer_id', '$.occurred_at',
                    '$.properties', '$.corrects', '$.correction'
                ])
            end as f
        from (
            select row_number() over () as line_number, line
            from read_csv(
                $path, columns = {'line': 'VARCHAR'}, header = false, auto_detect = false, delim = '\x01', quote = '',
                escape = '', comment = '', new_line = '\n', strict_mode = false, max_line_size = 16777216
            )
        )
    )
"""

_TYPES = """
    create type customer as enum (select customer_id from customers order by customer_id);
    create type event as enum ('llm_request', 'assistant_session');
    create type service as enum ('conversation', 'code');
    create type model as enum ('small', 'large');
    create type outcome as enum ('accepted', 'duplicate', 'rejected');
"""

_JUDGE = """
    create table deliveries as
    with fragments as (
        select
            batch_id,
            line_number,
            received_at,
            case when trim(idempotency_key) <> '' then idempotency_key end as idempotency_key,
            hash(event_type, schema_version, customer_id, occurred_at, properties) as content_hash,
            landing_error_code,
            event_type as event_type_text,
            schema_version,
            customer_id as customer_text,
            try_cast(event_type as event) as event_type,
            try_cast(customer_id as customer) as customer_id,
            case
                when occurred_at[5] = '-' and length(occurred_at) >= 16
                    then make_timestamp(epoch_us(try_cast(occurred_at as timestamptz)))
            end as occurred_at,
            occurred_at as occurred_at_text,
            corrects,
            correction,
            properties,
            try(json_extract_string(
                coalesce(properties, '{}'),
                ['$.service', '$.context_tokens', '$.generated_tokens', '$.model', '$.user_id', '$.duration_seconds']
            )) as p
        from raw_usage_events
    ),
    typed as (
        select
            *,
            try_cast(p[1] as service) as service,
            try_cast(p[2] as decimal(18, 9)) as context_tokens,
            try_cast(p[3] as decimal(18, 9)) as generated_tokens,
            try_cast(p[4] as model) as model,
            p[5] as user_id,
            try_cast(p[6] as decimal(18, 9)) as duration_seconds,
            landing_error_code is null
            and idempotency_key is not null
            and schema_version = '1'
            and customer_id is not null
            and occurred_at <= received_at + interval 5 minutes
            and corrects is null
            and correction is null as is_envelope_valid
        from fragments
    ),
    judged as (
        select
            *,
            coalesce(
                is_envelope_valid and case event_type
                    when 'llm_request' then
                        service is not null
                        and context_tokens between 0 and 10000000 and context_tokens = floor(context_tokens)
                        and generated_tokens between 0 and 10000000 and generated_tokens = floor(generated_tokens)
                        and (model is not null or p[4] is null)
                    when 'assistant_session' then
                        duration_seconds between 0 and 86400
                        -- Of all properties only this one may be any text, and must be text.
                        and json_type(properties, '$.user_id') = 'VARCHAR'
                end,
                false
            ) as is_valid
        from typed
    )
    select
        batch_id,
        line_number,
        idempotency_key,
        content_hash,
        event_type,
        customer_id,
        occurred_at,
        service,
        model,
        context_tokens::integer as context_tokens,
        generated_tokens::integer as generated_tokens,
        user_id,
        duration_seconds,
        case when is_valid then 'accepted' else 'rejected' end::outcome as outcome,
        false as is_conflict,
        case
            when not is_valid then concat_ws(
                '|',
                landing_error_code,
                case when landing_error_code is null and (
                    idempotency_key is null or event_type_text is null or schema_version is null
                    or customer_text is null or occurred_at_text is null
                ) then 'missing_required_field' end,
                case when event_type is null and event_type_text is not null then 'unknown_event_type' end,
                case when event_type is not null and schema_version <> '1' then 'unknown_schema_version' end,
                case when customer_id is null and customer_text is not null then 'unknown_customer' end,
                case when occurred_at is null and occurred_at_text is not null then 'unparseable_timestamp' end,
                case when occurred_at > received_at + interval 5 minutes then 'timestamp_in_future' end,
                case when corrects is not null or correction is not null then 'unsupported_correction' end,
                case when is_envelope_valid and event_type is not null then 'invalid_property' end
            )
        end as reason_codes
    from judged
"""

# Equal keys have equal hashes, which are far quicker to group than the keys; the few candidates are compared by key.
_COUNT_ONCE = """
    create temp table copies as
    with
    hashes as (
        select hash(idempotency_key) as key_hash
        from deliveries
        where outcome = 'accepted'
        group by key_hash
        having count(*) > 1
    ),
    candidates as (
        select
            deliveries.rowid as delivery,
            row_number() over arrivals as arrival,
            content_hash <> first_value(content_hash) over arrivals as is_conflict
        from deliveries
        semi join hashes on hash(deliveries.idempotency_key) = hashes.key_hash
        where outcome = 'accepted'
        window arrivals as (partition by idempotency_key order by batch_id, line_number)
    )
    select delivery, is_conflict from candidates where arrival > 1;

    update deliveries
    set outcome = 'duplicate', is_conflict = copies.is_conflict
    from copies
    where deliveries.rowid = copies.delivery;
"""

_AGGREGATE = """
    create table requests_hourly as
    select
        deliveries.customer_id,
        service,
        model,
        epoch_us(occurred_at) // window_us * window_us as window_start_us,
        count(*) as requests,
        sum(context_tokens)::bigint as context_tokens,
        sum(generated_tokens)::bigint as generated_tokens,
        max(context_tokens) as longest_context,
        min(occurred_at) as first_event_at,
        max(occurred_at) as last_event_at
    from deliveries
    inner join windows on deliveries.customer_id = windows.customer_id
    where outcome = 'accepted' and event_type = 'llm_request'
    group by all;

    create table sessions_hourly as
    select
        deliveries.customer_id,
        user_id,
        epoch_us(occurred_at) // window_us * window_us as window_start_us,
        count(*) as sessions,
        sum(duration_seconds) as session_seconds,
        min(occurred_at) as first_event_at,
        max(occurred_at) as last_event_at
    from deliveries
    inner join windows on deliveries.customer_id = windows.customer_id
    where outcome = 'accepted' and event_type = 'assistant_session'
    group by all;
"""

# Usage outside of any subscription keeps a row with an empty segment or period.
_ROLL_UP = """
    create table requests_by_segment as
    select
        segment_id,
        service,
        sum(requests)::bigint as requests,
        sum(context_tokens)::bigint as context_tokens,
        sum(generated_tokens)::bigint as generated_tokens,
        max(longest_context) as longest_context
    from requests_hourly as hourly
    left join segments
        on
            hourly.customer_id = segments.customer_id::customer
            and window_start_us >= epoch_us(segment_start_at)
            and window_start_us < epoch_us(segment_end_at)
    group by segment_id, service;

    create table sessions_by_period as
    select
        period_id,
        sum(sessions)::bigint as sessions,
        sum(session_seconds) as session_seconds,
        count(distinct user_id) as users
    from sessions_hourly as hourly
    left join service_periods as periods
        on
            hourly.customer_id = periods.customer_id::customer
            and window_start_us >= epoch_us(period_start_at)
            and window_start_us < epoch_us(period_end_at)
    group by period_id;
"""


def build(database: Path, files: Sequence[Path], memory_limit: str) -> dict[str, float]:
    """Land the files, in this order, and build everything from them.

    Returns:
        Seconds of each stage.
    """
    stages = Stages()
    with duckdb.connect(str(database)) as connection:
        connection.execute(f"set TimeZone = 'UTC'; set memory_limit = '{memory_limit}'")
        with stages.measure("land"):
            connection.execute(_RAW_TABLE)
            # Numbering the lines takes one thread for each file, so files are read side by side.
            with ThreadPoolExecutor(max_workers=2) as pool:
                list(pool.map(lambda file: _land(connection, *file), enumerate(files)))
        with stages.measure("judge and count once"):
            create_reference_tables(connection)
            connection.execute(_TYPES)
            connection.execute("set preserve_insertion_order = false")
            connection.execute(_JUDGE)
            connection.execute(_COUNT_ONCE)
        with stages.measure("aggregate"):
            connection.execute(
                "create temp table windows as select customer_id::customer as customer_id, window_us from customers"
            )
            connection.execute(_AGGREGATE)
            connection.execute(_ROLL_UP)
        with stages.measure("rate"):
            rate(connection)
        with stages.measure("checkpoint"):
            connection.execute("checkpoint")
    return stages.seconds


def _land(connection: duckdb.DuckDBPyConnection, batch_id: int, path: Path) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_LAND_FILE, {"batch_id": batch_id, "path": str(path)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description="Build the bare-SQL floor.")
    parser.add_argument("database", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--memory-limit", default="8GB")
    arguments = parser.parse_args()
    print(json.dumps(build(arguments.database, arguments.files, arguments.memory_limit)))


if __name__ == "__main__":
    main()
