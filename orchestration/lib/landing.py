"""Landing: usage events, independent totals and billed amounts of other systems, from files into the raw tables.

DuckDB reads the files, whatever the warehouse is. Each file is one batch, landed in one transaction. Nothing is checked
here beyond whether a record can be read at all; a record that cannot be is landed with its line, its text and the
reason.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import gzip
import hashlib
import json
import re
import tempfile
import time
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO

import duckdb

from orchestration.lib.project import MeteringError, Progress
from orchestration.lib.warehouse import Warehouse, WarehouseError

EVENT_FIELDS = (
    "idempotency_key", "event_type", "schema_version", "customer_id",
    "occurred_at", "properties", "corrects", "correction",
)  # fmt: skip
TOTALS_FIELDS = (
    "metric_code", "customer_id", "dimensions", "period_start_at", "period_end_at", "quantity", "source",
)  # fmt: skip
SHADOW_FIELDS = (
    "system", "customer_id", "billing_period", "charge_code", "currency_code", "quantity", "event_count", "amount",
)  # fmt: skip
# A damaged gzip file raises any of these.
_READ_ERRORS = (OSError, EOFError, zlib.error)
_MAX_LINE_BYTES = 16 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_BLANK_START = re.compile(rb"\n[\n \t]")
# Never valid inside a line of JSON, so the CSV reader takes each line whole.
_NO_DELIMITER = "\x01"


class FileChangedError(MeteringError):
    """A file was written to while it was read. Nothing of it was landed."""


@dataclass(frozen=True)
class LandedBatch:
    """One file landed.

    Attributes:
        batch_id: key of the batch in raw.usage_events.
        path: the file.
        deliveries: records landed.
        unreadable: how many of them could not be read.
        earlier_batch_id: a batch that landed the same bytes before, or None.
        seconds: time it took.
    """

    batch_id: str
    path: Path
    deliveries: int
    unreadable: int
    earlier_batch_id: str | None
    seconds: float


@dataclass(frozen=True)
class _FileFacts:
    """What is known of a file before it lands; records, is_regular and newline are of files of lines.

    Attributes:
        kind: jsonl, json, csv or parquet.
        version: bytes and time of modification (nanoseconds).
        sha256: of the bytes as they are.
        records: lines that are no blank, counted apart from the warehouse; None for other kinds.
        is_regular: whether the reader of lines takes the file as it is.
        newline: escaped, as the reader of lines takes it.
    """

    kind: str
    version: tuple[int, int]
    sha256: str
    records: int | None = None
    is_regular: bool = True
    newline: str = "\\n"


def expand_patterns(patterns: Sequence[str]) -> list[Path]:
    """Turn files and globs into a sorted list of files, each once, in the order of the patterns.

    Raises:
        MeteringError: a pattern matches no file.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        # A name may have brackets without being a pattern.
        found = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
        matches = sorted(path for path in found if Path(path).is_file())
        if not matches:
            raise MeteringError(f"{pattern}: no such file. Give a file or a quoted glob such as 'events/*.jsonl.gz'.")
        files.update(dict.fromkeys(Path(match) for match in matches))
    return list(files)


def land_files(warehouse: Warehouse, paths: Iterable[Path], *, progress: Progress) -> list[LandedBatch]:
    """Land event files, each as a batch of its own.

    Formats go by the name: .jsonl, .ndjson (one event or CloudEvent a line), .json (an array of them), .csv and
    .parquet; text may be gzipped (.gz). A CSV or Parquet file has the event's fields as columns; without a column
    ``properties`` its other columns are taken as the properties.

    Args:
        warehouse: open warehouse with its landing tables.
        paths: files to land, in this order.
        progress: called with a line of text for each file.

    Raises:
        MeteringError: the format of a file is not known, the file as a whole cannot be read, or it was written to
            meanwhile. All others have landed.
    """
    batches, failures = _land_each(warehouse, paths, progress)
    if failures:
        raise MeteringError("\n".join(str(failure) for failure in failures))
    return batches


def _land_each(
    warehouse: Warehouse, paths: Iterable[Path], progress: Progress
) -> tuple[list[LandedBatch], list[MeteringError]]:
    batches: list[LandedBatch] = []
    failures: list[MeteringError] = []
    files = list(paths)
    with ThreadPoolExecutor(1) as inspector:
        # The next file is looked at while DuckDB reads this one.
        inspections = [inspector.submit(_inspect, path) for path in files[:1]]
        for number, path in enumerate(files):
            inspections += [inspector.submit(_inspect, following) for following in files[number + 1 : number + 2]]
            try:
                batches.append(_land_file(warehouse, path, inspections[number], progress))
            except MeteringError as error:
                failures.append(error)
    return batches, failures


def land_new_files(warehouse: Warehouse, folder: Path, *, progress: Progress) -> list[LandedBatch]:
    """Land the event files of a folder that have not landed yet, by path, size and time of modification.

    A file that was changed is landed again whole: what was there before is a copy, and copies count once. One that is
    being written waits for the next time, and one whose name begins with a dot until it is renamed.

    Raises:
        MeteringError: as land_files, but for files that are being written.
    """
    landed = set(warehouse.execute("select source, file_bytes, file_modified_ns from raw.load_batches").rows)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    batches, failures = _land_each(
        warehouse, [path for path in files if (str(path), *_version(path)) not in landed], progress
    )
    for failure in failures:
        if isinstance(failure, FileChangedError):
            progress(str(failure))
    errors = [str(failure) for failure in failures if not isinstance(failure, FileChangedError)]
    if errors:
        raise MeteringError("\n".join(errors))
    return batches


def land_new_independent_totals(warehouse: Warehouse, folder: Path, *, progress: Progress) -> int:
    """Land the CSV files of a folder whose content has not landed yet.

    Returns:
        Rows landed.

    Raises:
        MeteringError: as land_independent_totals.
    """
    landed = warehouse.execute("select distinct batch_id from raw.independent_totals").rows
    digests = {batch_id.rsplit("-", 1)[1] for (batch_id,) in landed}
    return sum(
        land_independent_totals(warehouse, path, progress=progress)
        for path in sorted(folder.rglob("*.csv"))
        if hashlib.sha256(path.read_bytes()).hexdigest()[:12] not in digests
    )


def _land_file(warehouse: Warehouse, path: Path, inspection: Future[_FileFacts], progress: Progress) -> LandedBatch:
    started = time.monotonic()
    facts = inspection.result()
    kind = facts.kind
    received_at = datetime.now(UTC).replace(tzinfo=None)
    batch_id = f"{received_at:%Y%m%dT%H%M%S%fZ}-{facts.sha256[:12]}"
    earlier = warehouse.execute(
        "select batch_id from raw.load_batches where file_sha256 = ? order by received_at limit 1", [facts.sha256]
    ).fetchone()

    try:
        with warehouse.landing() as connection:
            if kind == "jsonl":
                counted = _insert_lines(connection, path, facts, batch_id, received_at)
            elif kind == "json":
                counted = _insert_array(connection, path, batch_id, received_at)
            elif kind == "csv":
                counted = _insert_csv(connection, path, batch_id, received_at)
            else:
                counted = _insert_parquet(connection, path, batch_id, received_at)
            if not path.exists() or _version(path) != facts.version:
                raise FileChangedError(
                    f"{path}: was written to while it was read, nothing of it was landed. Land it when it is whole."
                )
            connection.execute(
                "insert into raw.load_batches values (?, ?, ?, ?, ?, ?, ?)",
                [batch_id, str(path), facts.sha256, *facts.version, counted, received_at],
            )
            landed = connection.execute(
                "select count(*), count(landing_error_code) from raw.usage_events where batch_id = ?", [batch_id]
            ).fetchone()
    except duckdb.Error as error:
        raise MeteringError(f"{path}: cannot be read as {kind}, nothing of it was landed: {error}") from error
    except WarehouseError as error:
        raise MeteringError(f"{path}: is not landed: {error}") from error

    assert landed is not None
    batch = LandedBatch(
        batch_id, path, landed[0], landed[1], earlier[0] if earlier else None, time.monotonic() - started
    )
    again = f"; the same bytes landed before as batch {batch.earlier_batch_id}, copies count once" if earlier else ""
    unreadable = f", {batch.unreadable:,} unreadable" if batch.unreadable else ""
    progress(f"landed {path.name}: {batch.deliveries:,} deliveries{unreadable} in {batch.seconds:.1f} s{again}")
    return batch


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _kind_of(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    for suffix, kind in ((".jsonl", "jsonl"), (".ndjson", "jsonl"), (".json", "json"), (".csv", "csv")):
        if name.endswith(suffix):
            return kind
    if path.name.lower().endswith(".parquet"):
        return "parquet"
    raise MeteringError(f"{path}: unknown format. Known are .jsonl, .ndjson, .json, .csv (also .gz) and .parquet.")


def _open_binary(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    return path.open("rb")


def _inspect(path: Path) -> _FileFacts:
    """Hash the file and, for lines, count its records apart from the warehouse and find its newline.

    Raises:
        MeteringError: the format is not known or the file cannot be read.
    """
    kind = _kind_of(path)
    digest = hashlib.sha256()
    try:
        # Taken before reading: what is written to the file meanwhile makes it a new version.
        version = _version(path)
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        if kind != "jsonl":
            return _FileFacts(kind, version, digest.hexdigest())
        records = _count_plain_lines(path)
        if records is not None:
            return _FileFacts(kind, version, digest.hexdigest(), records)
        records, is_regular, newline = _inspect_lines(path)
        return _FileFacts(kind, version, digest.hexdigest(), records, is_regular, newline)
    except _READ_ERRORS as error:
        raise MeteringError(f"{path}: cannot be read, nothing of it was landed: {error}") from error


def _count_plain_lines(path: Path) -> int | None:
    """Count the lines of a file, if none begins with a blank, is overlong or ends in another way than by a newline.

    Returns:
        None for other files: each of their lines must be looked at, which takes several times as long.
    """
    newlines = unbroken = 0
    last = b"\n"
    with _open_binary(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            if (
                any(character in chunk for character in (b"\r", b"\x00", b"\x01"))
                or _BLANK_START.search(last + chunk)
                or (newlines == 0 and last == b"\n" and chunk.startswith(BOM_UTF8))
            ):
                return None
            found = chunk.count(b"\n")
            unbroken = len(chunk) - chunk.rfind(b"\n") if found else unbroken + len(chunk)
            if unbroken > _MAX_LINE_BYTES - _CHUNK_BYTES:
                return None
            newlines += found
            last = chunk[-1:]
    return newlines + (last != b"\n")


def _inspect_lines(path: Path) -> tuple[int, bool, str]:
    """Look at each line; the records, whether the reader of lines takes the file, and its newline."""
    records = lines = carriage_returns = windows_newlines = 0
    is_regular = True
    with _open_binary(path) as stream:
        for line in stream:
            lines += 1
            # As the warehouse sees it: blanks and tabs make no record, and a byte order mark no line.
            records += bool((line.removeprefix(BOM_UTF8) if lines == 1 else line).strip(b" \t\r\n"))
            if b"\r" in line:
                carriage_returns += line.count(b"\r")
                windows_newlines += line.endswith(b"\r\n")
            if len(line) > _MAX_LINE_BYTES or b"\x01" in line or b"\x00" in line:
                is_regular = False
    is_windows = windows_newlines > 0
    if carriage_returns and (carriage_returns != windows_newlines or windows_newlines < lines - 1):
        is_regular = False
    return records, is_regular, "\\r\\n" if is_windows else "\\n"


def _insert_lines(
    connection: duckdb.DuckDBPyConnection, path: Path, facts: _FileFacts, batch_id: str, received_at: datetime
) -> int:
    assert facts.records is not None
    if facts.is_regular:
        try:
            _insert_line_records(connection, path, path, facts.newline, batch_id, received_at)
            return facts.records
        except duckdb.Error:
            # Not UTF-8, as a rule. The failed insert has aborted the transaction, which held nothing else.
            connection.execute("rollback")
            connection.execute("begin")
    # Broken UTF-8, control characters, mixed newlines, overlong lines: make each line one the reader takes, in place.
    with tempfile.TemporaryDirectory() as folder:
        cleaned = Path(folder) / "lines.jsonl"
        with cleaned.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(line + "\n" for line in _cleaned_lines(path))
        _insert_line_records(connection, cleaned, path, "\\n", batch_id, received_at)
    return facts.records


def _cleaned_lines(path: Path) -> Iterator[str]:
    with _open_binary(path) as stream:
        for raw in stream:
            line = raw.rstrip(b"\r\n")
            if len(line) > _MAX_LINE_BYTES // 2:
                yield f"!line of {len(line)} bytes is too long: {line[:200].decode('utf-8', 'backslashreplace')}"
                continue
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                yield "!not valid UTF-8: " + line.decode("utf-8", "backslashreplace")
                continue
            yield re.sub(r"[\x00-\x08\x0a-\x1f]", lambda found: f"\\x{ord(found.group()):02x}", text)


def _line_reader(path: Path, newline: str) -> str:
    return f"""
        read_csv(
            {_file(path)},
            columns = {{'line': 'VARCHAR'}},
            hive_partitioning = false,
            header = false,
            auto_detect = false,
            delim = '{_NO_DELIMITER}',
            quote = '',
            escape = '',
            comment = '',
            new_line = '{newline}',
            strict_mode = false,
            max_line_size = {_MAX_LINE_BYTES},
            buffer_size = {2 * _MAX_LINE_BYTES}
        )
    """


def _begins_with_brace(text: str) -> str:
    """SQL for whether a text is a brace and more, after blanks. Trimming each line would cost more than parsing it."""
    return f"case when starts_with({text}, '{{') then true else starts_with(ltrim({text}, chr(9) || ' '), '{{') end"


def _has_long_number(text: str) -> str:
    """SQL for whether a text may hold a number with more digits than a double holds."""
    return f"regexp_matches({text}, '[0-9.eE+-]{{17}}')"


def _may_have_lost_digits(fields: str) -> str:
    """SQL for whether a value of an event, once read, may be a double, and so may have had more digits.

    Whole numbers are read as they are, and a double is written with a point or an exponent. Looking for these in what
    was read costs a fraction of searching each record for long numbers.
    """
    numbers = [
        f"coalesce(regexp_full_match({fields}.{name}, '-?[0-9]+([.][0-9]+([eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)'), false)"
        for name in ("id", "source", "subject", "idempotency_key", "customer_id")
    ]
    documents = [
        f"coalesce(contains({fields}.{name}, '.') or regexp_matches({fields}.{name}, 'e[0-9-]'), false)"
        for name in ("data", "properties")
    ]
    return " or ".join([*documents, *numbers])


def _exact_numbers(text: str) -> str:
    """SQL for JSON text in which numbers with more digits than a double holds stand in quotes: readers take doubles."""
    return rf"""
        array_to_string(
            list_transform(
                regexp_extract_all({text}, '"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|[^"0-9-]+|.'),
                lambda token: case
                    when
                        length(token) >= 17
                        and regexp_full_match(token, '-?[0-9]+([.][0-9]+)?([eE][+-]?[0-9]+)?')
                        then '"' || token || '"'
                    else token
                end
            ),
            ''
        )
    """


# CloudEvents 1.0: id and source make an event unique; type, subject, time and data carry the rest. The specification
# has no schema version; an extension attribute schemaversion may give one.
#
# Records with numbers that a double cannot hold are read a second time, with these numbers in quotes: in the record,
# and in the properties, which may be JSON inside a string.
_FIELDS_OF_RECORD = (
    "specversion", "id", "source", "type", "schemaversion", "subject", "time", "data", *EVENT_FIELDS,
)  # fmt: skip
_STRUCTURE = f"'{json.dumps(dict.fromkeys(_FIELDS_OF_RECORD, 'VARCHAR'))}'"
_RECORD_TO_EVENT = rf"""
    select
        line_number,
        line,
        is_object,
        has_long_number,
        case
            when has_long_number then json_transform({_exact_numbers("line")}, {_STRUCTURE})
            else fields
        end as f
    from (
        select
            *,
            case
                when {_may_have_lost_digits("fields")} then {_has_long_number("line")}
                else false
            end as has_long_number
        from (
            select
                line_number,
                line,
                {_begins_with_brace("line")} and json_valid(line) as is_object,
                case when is_object then json_transform(line, {_STRUCTURE}) end as fields
            from records
        )
    )
"""


def _insert_line_records(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    source: Path,
    newline: str,
    batch_id: str,
    received_at: datetime,
) -> None:
    # The lines first, in order: numbering them while they are parsed would keep all of it on one processor.
    connection.execute(f"create or replace temp table landed_lines as select line from {_line_reader(path, newline)}")

    def either(cloud_event: str, event: str) -> str:
        return f"case when is_cloud_event then {cloud_event} else {event} end"

    properties = either("f.data", "f.properties")
    # Without one of the two there is no key: events that lack it would be taken for copies of one another.
    cloud_event_key = (
        "case when trim(f.source, ' ') <> '' and trim(f.id, ' ') <> '' then to_json([f.source, f.id])::varchar end"
    )
    with _any_order(connection):
        connection.execute(
            f"""
            insert into raw.usage_events by name
            with records as (
                select rowid - (select min(rowid) from landed_lines) + 1 as line_number, line from landed_lines
                where case when starts_with(line, '{{') then true else trim(line, chr(9) || ' ') <> '' end
            ),
            fields as ({_RECORD_TO_EVENT}),
            events as (select *, coalesce(f.specversion is not null, false) as is_cloud_event from fields)
            select
                $batch_id as batch_id,
                line_number,
                $source as source,
                $received_at::timestamp as received_at,
                {either(cloud_event_key, "f.idempotency_key")} as idempotency_key,
                {either("f.type", "f.event_type")} as event_type,
                {either("coalesce(f.schemaversion, '1')", "f.schema_version")} as schema_version,
                {either("f.subject", "f.customer_id")} as customer_id,
                {either("f.time", "f.occurred_at")} as occurred_at,
                case when has_long_number then {_exact_numbers(properties)} else {properties} end as properties,
                f.corrects,
                f.correction,
                case when not is_object then 'unparseable_json' end as landing_error_code,
                case when not is_object then 'line ' || line_number || ' is not a JSON object: ' || left(line, 100) end
                    as landing_error,
                case when not is_object then line end as raw_record
            from events
            """,
            {"batch_id": batch_id, "source": str(source), "received_at": received_at},
        )
    connection.execute("drop table landed_lines")


@contextlib.contextmanager
def _any_order(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Let rows be written in any order, which spares DuckDB writing them twice: as they are, then compressed."""
    # By a session of its own, since after an error this one takes no statement before its rollback.
    with connection.cursor() as session:
        session.execute("set global preserve_insertion_order = false")
        try:
            yield
        finally:
            session.execute("set global preserve_insertion_order = true")


def _insert_array(connection: duckdb.DuckDBPyConnection, path: Path, batch_id: str, received_at: datetime) -> int:
    with _open_binary(path) as stream:
        try:
            content = json.load(stream, parse_float=str)
        except _READ_ERRORS as error:
            raise MeteringError(f"{path}: cannot be read, nothing of it was landed: {error}") from error
        except (ValueError, RecursionError) as error:
            raise MeteringError(
                f"{path}: is not valid JSON, nothing of it was landed: {error}. "
                "One event a line belongs into a .jsonl file."
            ) from error
    events = content if isinstance(content, list) else [content]
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines.jsonl"
        with lines.open("w", encoding="utf-8", newline="\n") as stream_out:
            stream_out.writelines(json.dumps(event) + "\n" for event in events)
        _insert_line_records(connection, lines, path, "\\n", batch_id, received_at)
    return len(events)


def _insert_csv(connection: duckdb.DuckDBPyConnection, path: Path, batch_id: str, received_at: datetime) -> int:
    for table in ("reject_scans", "reject_errors"):
        connection.execute(f"drop table if exists {table}")
    reader = (
        f"read_csv({_file(path)}, hive_partitioning = false, header = true, all_varchar = true, "
        f"delim = ',', quote = '\"', escape = '\"', "
        f"null_padding = false, ignore_errors = true, store_rejects = true, max_line_size = {_MAX_LINE_BYTES})"
    )
    columns = [row[0] for row in connection.execute(f"describe select * from {reader}").fetchall()]
    for table in ("reject_scans", "reject_errors"):
        connection.execute(f"drop table if exists {table}")
    connection.execute(
        f"create or replace temp table csv_rows as select row_number() over () as row_number, * from {reader}"
    )
    # A record that could not be read takes a number of its own, so that those after it keep theirs.
    connection.execute(
        """
        create or replace temp table csv_rejects as
        select line, any_value(csv_line) as csv_line, string_agg(distinct error_message, '; ') as error_message,
            line - row_number() over (order by line) as rows_before
        from reject_errors group by line
        """
    )
    swallowed = connection.execute(
        "select line from csv_rejects "
        "where contains(csv_line, chr(10)) or error_message ilike '%unterminated quote%' limit 1"
    ).fetchone()
    if swallowed is not None:
        raise MeteringError(
            f"{path}, line {swallowed[0]}: a quote is opened and not closed, so the records after it are lost in it. "
            "Nothing of the file was landed; close the quote, or double it if it belongs to the value."
        )
    connection.execute(
        f"""
        insert into raw.usage_events by name
        select
            $batch_id as batch_id,
            row_number + 1 + (
                select count(*) from csv_rejects where csv_rejects.rows_before < csv_rows.row_number + 1
            ) as line_number,
            $source as source,
            $received_at::timestamp as received_at,
            {_event_columns(path, columns, dict.fromkeys(columns, "VARCHAR"))}
        from csv_rows
        """,
        {"batch_id": batch_id, "source": str(path), "received_at": received_at},
    )
    connection.execute(
        """
        insert into raw.usage_events by name
        select
            $batch_id as batch_id,
            line as line_number,
            $source as source,
            $received_at::timestamp as received_at,
            'unparseable_record' as landing_error_code,
            'line ' || line || ' is not a record of the file: ' || error_message as landing_error,
            csv_line as raw_record
        from csv_rejects
        """,
        {"batch_id": batch_id, "source": str(path), "received_at": received_at},
    )
    counted = connection.execute(
        "select (select count(*) from csv_rows) + (select count(*) from csv_rejects)"
    ).fetchone()
    for table in ("csv_rows", "csv_rejects", "reject_scans", "reject_errors"):
        connection.execute(f"drop table if exists {table}")
    assert counted is not None
    return int(counted[0])


def _insert_parquet(connection: duckdb.DuckDBPyConnection, path: Path, batch_id: str, received_at: datetime) -> int:
    types = {
        row[0]: row[1]
        for row in connection.execute(
            f"describe select * from read_parquet({_file(path)}, hive_partitioning = false)"
        ).fetchall()
    }
    connection.execute(
        f"""
        insert into raw.usage_events by name
        select
            $batch_id as batch_id,
            file_row_number + 1 as line_number,
            $source as source,
            $received_at::timestamp as received_at,
            {_event_columns(path, list(types), types)}
        from read_parquet({_file(path)}, file_row_number = true, hive_partitioning = false)
        """,
        {"batch_id": batch_id, "source": str(path), "received_at": received_at},
    )
    counted = connection.execute(f"select sum(num_rows) from parquet_file_metadata({_file(path)})").fetchone()
    assert counted is not None
    return int(counted[0])


def _event_columns(path: Path, columns: list[str], types: dict[str, str]) -> str:
    """SQL that turns the columns of a table-like file into the fields of an event."""
    if "idempotency_key" not in columns:
        raise MeteringError(
            f"{path}: has no column idempotency_key (it has {', '.join(columns[:12])}). "
            "The first line must name the event's fields."
        )
    expressions = []
    for field in EVENT_FIELDS:
        if field == "properties" or field not in columns:
            continue
        expressions.append(f"{_identifier(field)}::varchar as {field}")
    if "properties" in columns:
        is_text = types["properties"] in ("VARCHAR", "JSON")
        value = _identifier("properties")
        text = f"({value if is_text else f'to_json({value})'})::varchar"
        expressions.append(
            f"case when {_has_long_number(text)} then {_exact_numbers(text)} else {text} end as properties"
        )
    else:
        others = [column for column in columns if column not in EVENT_FIELDS]
        pairs = ", ".join(
            f"{_quote(column)}, {_identifier(column)}{'' if types[column] == 'BOOLEAN' else '::varchar'}"
            for column in others
        )
        expressions.append(f"json_object({pairs})::varchar as properties")
    return ",\n".join(expressions)


def _file(path: Path) -> str:
    """A file as the argument of a reader, which would take brackets, asterisks and question marks for a pattern."""
    return _quote(re.sub(r"[\[*?]", lambda found: f"[{found.group()}]", str(path)))


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def land_independent_totals(warehouse: Warehouse, path: Path, *, progress: Progress) -> int:
    """Land a CSV file of independent totals (columns TOTALS_FIELDS), whole or not at all.

    Periods are UTC, half-open and on full hours, since usage is metered by the hour. ``dimensions`` is empty for a
    total over all pricing dimension values, else the JSON text as the marts show it.

    Returns:
        Rows landed.

    Raises:
        MeteringError: a row is not as described; the message names the file, line, column and value.
    """
    rows = [_totals_row(path, number, row) for number, row in _csv_records(path, TOTALS_FIELDS)]
    _append_rows(warehouse, path, "raw.independent_totals", rows)
    progress(f"landed {path.name}: {len(rows):,} independent totals")
    return len(rows)


def land_shadow_billing(warehouse: Warehouse, path: Path, *, progress: Progress) -> int:
    """Land a CSV file of what another system billed (columns SHADOW_FIELDS), whole or not at all.

    ``charge_code`` is empty for a whole invoice. ``quantity``, in the metric's unit and before anything included, and
    ``event_count`` may be empty. Rows that landed before stay: of several for the same system, customer, billing
    period, charge and currency the one received last applies, so loading a file again changes nothing.

    Returns:
        Rows landed.

    Raises:
        MeteringError: a row is not as described; the message names the file, line, column and value.
    """
    rows = []
    lines: dict[tuple[object, ...], int] = {}
    for number, record in _csv_records(path, SHADOW_FIELDS):
        row = _shadow_row(path, number, record)
        earlier = lines.setdefault(tuple(row[1:6]), number)
        if earlier != number:
            raise MeteringError(
                f"{path}, line {number}: is for the same system, customer_id, billing_period, charge_code and "
                f"currency_code as line {earlier}. Nothing of the file was landed; add up what belongs together."
            )
        rows.append(row)
    _append_rows(warehouse, path, "raw.shadow_billing", rows)
    progress(f"landed {path.name}: {len(rows):,} billed amounts")
    return len(rows)


def _csv_records(path: Path, fields: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The records of a CSV file that has these columns, each with its line; a cell that is not there is empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restval="")
            missing = [field for field in fields if field not in (reader.fieldnames or [])]
            if missing:
                raise MeteringError(f"{path}, line 1: lacks the column {', '.join(missing)}.")
            records = []
            for row in reader:
                if None in row:
                    raise MeteringError(
                        f"{path}, line {reader.line_num}: has more values than line 1 has columns. "
                        "Nothing of the file was landed; quote a value that holds a comma."
                    )
                records.append((reader.line_num, row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MeteringError(f"{path}: cannot be read: {error}") from error
    if not records:
        raise MeteringError(f"{path}: has no rows.")
    return records


def _append_rows(warehouse: Warehouse, path: Path, table: str, rows: Sequence[Sequence[object]]) -> None:
    """Append rows, each beginning with its line, to a landing table as one batch."""
    received_at = datetime.now(UTC).replace(tzinfo=None)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    batch_id = f"{received_at:%Y%m%dT%H%M%S%fZ}-{digest[:12]}"
    marks = ", ".join("?" for _ in range(len(rows[0]) + 2))
    with warehouse.landing() as connection:
        connection.executemany(
            f"insert into {table} values ({marks})",
            [[batch_id, row[0], received_at, *row[1:]] for row in rows],
        )


def _totals_row(path: Path, number: int, row: dict[str, str]) -> list[object]:
    def fail(column: str, why: str) -> MeteringError:
        return MeteringError(
            f"{path}, line {number}: {column} = {row.get(column)!r} {why}. Nothing of the file was landed."
        )

    for column in ("metric_code", "customer_id", "source"):
        if not (row[column] or "").strip():
            raise fail(column, "is blank")
    bounds: list[datetime] = []
    for column in ("period_start_at", "period_end_at"):
        try:
            instant = datetime.fromisoformat(row[column])
        except (TypeError, ValueError):
            raise fail(column, "is not an ISO 8601 date and time") from None
        instant = (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC).replace(tzinfo=None)
        if instant.minute or instant.second or instant.microsecond:
            raise fail(column, "is not on the full hour (UTC)")
        bounds.append(instant)
    if bounds[0] >= bounds[1]:
        raise fail("period_end_at", "does not lie after period_start_at")
    try:
        quantity = Decimal(row["quantity"])
    except (InvalidOperation, TypeError):
        raise fail("quantity", "is not a number") from None
    if not quantity.is_finite() or abs(quantity) >= 10**19 or quantity != round(quantity, 9):
        raise fail("quantity", "is not a finite number of at most 19 digits before the point and 9 after it")
    dimensions = row["dimensions"] or ""
    if dimensions:
        try:
            parsed = json.loads(dimensions)
        except json.JSONDecodeError:
            raise fail("dimensions", "is neither empty nor a JSON object") from None
        if not isinstance(parsed, dict):
            raise fail("dimensions", "is neither empty nor a JSON object")
        # Written as the metering writes it: one blank after each colon and comma.
        dimensions = json.dumps(parsed, ensure_ascii=False)
    return [number, row["metric_code"], row["customer_id"], dimensions, *bounds, quantity, row["source"]]


def _shadow_row(path: Path, number: int, row: dict[str, str]) -> list[object]:
    def fail(column: str, why: str) -> MeteringError:
        return MeteringError(
            f"{path}, line {number}: {column} = {row[column]!r} {why}. Nothing of the file was landed."
        )

    values = {field: row[field].strip() for field in SHADOW_FIELDS}
    for column in ("system", "customer_id", "billing_period", "currency_code", "amount"):
        if not values[column]:
            raise fail(column, "is blank; give it a value")
    if not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", values["billing_period"]):
        raise fail("billing_period", "is no month written YYYY-MM")
    if not re.fullmatch(r"[A-Z]{3}", values["currency_code"]):
        raise fail("currency_code", "is no ISO 4217 code of three capital letters")
    decimals: dict[str, Decimal | None] = {}
    for column, digits in (("quantity", 19), ("amount", 15)):
        text = values[column]
        try:
            decimals[column] = value = Decimal(text) if text else None
        except InvalidOperation:
            raise fail(column, "is not a number; write it with a decimal point and no separators") from None
        if value is not None and (not value.is_finite() or abs(value) >= 10**digits or value != round(value, 9)):
            raise fail(column, f"is not a finite number of at most {digits} digits before the point and 9 after it")
    if values["event_count"] and not re.fullmatch(r"[0-9]{1,18}", values["event_count"]):
        raise fail("event_count", "is no whole number from 0 on")
    if not values["charge_code"]:
        for column in ("quantity", "event_count"):
            if values[column]:
                raise fail(column, "is given without charge_code; a whole invoice has none, leave it empty")
    return [
        number,
        values["system"],
        values["customer_id"],
        values["billing_period"],
        values["charge_code"] or None,
        values["currency_code"],
        decimals["quantity"],
        int(values["event_count"]) if values["event_count"] else None,
        decimals["amount"],
    ]
