"""Deterministic usage events of the sample catalog as JSONL files, written by DuckDB.

An event is a function of its number, so the same numbers give the same events (with one version of DuckDB, whose hash
draws the values). Run as a module in a process of its own, so that its memory is not taken for that of what is
measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import duckdb

DELIVERIES_PER_FILE = 500_000
INCREMENT_DELIVERIES = 100_000
MAX_INCREMENTS = 20
_CUSTOMERS = 40
_USERS_PER_CUSTOMER = 500
# August to October; the increments are days of November.
_HISTORY_START = datetime(2026, 8, 1)
_HISTORY_DAYS = 92
_INCREMENTS_START = datetime(2026, 11, 2)
# Increments have numbers of their own, far from those of any history.
_FIRST_INCREMENT_NUMBER = 10_000_000_000
_DRAWS = (
    "copy", "near", "back", "origin", "conflict", "malformed", "kind", "type", "customer", "jitter",
    "user", "duration", "service", "context", "generated", "model",
)  # fmt: skip


@dataclass(frozen=True)
class _Span:
    """Events spread evenly over some days: event ``first + i`` of ``count`` lies at ``start + i / count * days``."""

    first: int
    count: int
    start: datetime
    days: int

    def place(self, event: str) -> str:
        microseconds = self.days * 86_400_000_000
        return (
            f"timestamp '{self.start}' + to_microseconds((({event} - {self.first})::hugeint "
            f"* {microseconds} // {self.count})::bigint)"
        )


def write_history(folder: Path, deliveries: int, *, per_file: int = DELIVERIES_PER_FILE) -> list[Path]:
    """Write the deliveries of three months, in order of time, in files of so many each.

    Of the deliveries about 2 % are copies (half of an event shortly before, half of any earlier one; every tenth with
    other content), 0.05 % are malformed in ten ways, 10 % are sessions and the others requests.
    """
    folder.mkdir(parents=True, exist_ok=True)
    span = _Span(0, deliveries, _HISTORY_START, _HISTORY_DAYS)
    near = f"greatest(number - 1 - ({_draw('number', 'back')} % 1000)::bigint, 0)"
    anywhere = f"({_draw('number', 'origin')} % greatest(number, 1)::ubigint)::bigint"
    origin = f"case when {_draw('number', 'near')} % 2 = 0 then {near} else {anywhere} end"
    paths = []
    with duckdb.connect() as connection:
        for first in range(0, deliveries, per_file):
            path = folder / f"events-{first // per_file:04d}.jsonl"
            last = min(first + per_file, deliveries)
            _write(connection, path, _lines_sql(range(first, last), span, origin, span))
            paths.append(path)
    return paths


def write_increment(folder: Path, number: int, history: int, deliveries: int = INCREMENT_DELIVERIES) -> Path:
    """Write the deliveries of day ``number`` (from 0) after a history of so many deliveries; 2 % are copies from it.

    Raises:
        ValueError: there are MAX_INCREMENTS days only.
    """
    if not 0 <= number < MAX_INCREMENTS:
        raise ValueError(f"increment {number}: there are {MAX_INCREMENTS}, numbered from 0")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"increment-{number:02d}.jsonl"
    first = _FIRST_INCREMENT_NUMBER + number * deliveries
    span = _Span(first, deliveries, _INCREMENTS_START + timedelta(days=number), 1)
    origin = f"({_draw('number', 'origin')} % {history})::bigint"
    with duckdb.connect() as connection:
        numbers = range(first, first + deliveries)
        _write(connection, path, _lines_sql(numbers, span, origin, _Span(0, history, _HISTORY_START, _HISTORY_DAYS)))
    return path


def _draw(number: str, name: str) -> str:
    """A random whole number that depends on the number and on what is drawn."""
    return f"hash({number} * {len(_DRAWS)} + {_DRAWS.index(name)})"


def _write(connection: duckdb.DuckDBPyConnection, path: Path, lines_sql: str) -> None:
    target = str(path).replace("'", "''")
    # Without quotes and with a delimiter that no line holds, CSV is the line as it is.
    connection.execute(
        f"copy ({lines_sql}) to '{target}' "
        r"(format csv, header false, quote '', escape '', delimiter '\x01')"
    )


def _lines_sql(numbers: range, span: _Span, origin: str, origin_span: _Span) -> str:
    """SQL for lines: number, then the event that is delivered, then its values, then its text.

    Args:
        numbers: of the deliveries.
        span: in which they lie.
        origin: SQL for the event that delivery ``number`` is a copy of, when it is one.
        origin_span: in which that one lies.
    """
    return f"""
        with numbers as (
            select number, {_draw("number", "copy")} % 50 = 0 as is_copy
            from range({numbers.start}, {numbers.stop}) as numbers(number)
        ),
        deliveries as (
            select
                is_copy,
                is_copy and {_draw("number", "conflict")} % 10 = 0 as is_conflict,
                case when is_copy then {origin} else number end as event,
                case
                    when not is_copy and {_draw("number", "malformed")} % 2000 = 0 then {_draw("number", "kind")} % 10
                    else 99
                end as kind
            from numbers
        ),
        events as (
            select
                event,
                is_conflict,
                kind,
                -- Squared, so that some customers have far more events than others.
                floor({_CUSTOMERS} * pow(({_draw("event", "customer")} % 1000000) / 1000000, 2))::integer as customer,
                kind not in (6, 7, 8) and {_draw("event", "type")} % 10 = 0 as is_session,
                case when is_copy then {origin_span.place("event")} else {span.place("event")} end
                + to_microseconds(({_draw("event", "jitter")} % 3600000000)::bigint) as occurred_at
            from deliveries
        ),
        texts as (
            select
                kind,
                cast(md5(event::varchar) as uuid)::varchar as idempotency_key,
                case when kind = 2 then 'unheard_of' when is_session then 'assistant_session' else 'llm_request' end
                    as event_type,
                case when kind = 5 then 'cus_999' else 'cus_' || lpad(customer::varchar, 3, '0') end as customer_id,
                case when kind = 4 then 'yesterday' else strftime(occurred_at, '%Y-%m-%dT%H:%M:%S.%fZ') end
                    as occurred_at,
                case
                    when is_session then
                        '"user_id":'
                        || case
                            when kind = 9 then '42'
                            else '"user_' || {_draw("event", "user")} % {_USERS_PER_CUSTOMER} || '"'
                        end
                        || ',"duration_seconds":'
                        || ({_draw("event", "duration")} % 7200000) // 1000
                        || '.' || lpad(({_draw("event", "duration")} % 1000)::varchar, 3, '0')
                        || case when is_conflict then ',"note":"changed"' else '' end
                    else
                        '"service":"'
                        || case
                            when kind = 9 then 'search'
                            when {_draw("event", "service")} % 4 = 0 then 'code'
                            else 'conversation'
                        end
                        || '"'
                        || case kind
                            when 6 then ''
                            when 7 then ',"context_tokens":"many"'
                            when 8 then ',"context_tokens":-1'
                            else ',"context_tokens":' || ({_draw("event", "context")} % 4000 + is_conflict::integer)
                        end
                        || ',"generated_tokens":' || {_draw("event", "generated")} % 1000
                        || case {_draw("event", "model")} % 5
                            when 0 then ''
                            when 1 then ',"model":"large"'
                            else ',"model":"small"'
                        end
                end as properties
            from events
        )
        select
            case
                when kind = 0 then '{{"idempotency_key":"' || idempotency_key
                else
                    '{{'
                    || case when kind = 1 then '' else '"idempotency_key":"' || idempotency_key || '",' end
                    || '"event_type":"' || event_type
                    || '","schema_version":' || case when kind = 3 then '9' else '1' end
                    || ',"customer_id":"' || customer_id
                    || '","occurred_at":"' || occurred_at
                    || '","properties":{{' || properties || '}}}}'
            end as line
        from texts
    """


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description="Write usage events as JSONL.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--history", type=int, required=True, help="deliveries of the history")
    parser.add_argument("--increments", type=int, default=0, help="write so many increments instead of the history")
    arguments = parser.parse_args()
    if arguments.increments:
        paths = [write_increment(arguments.folder, n, arguments.history) for n in range(arguments.increments)]
    else:
        paths = write_history(arguments.folder, arguments.history)
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    main()
