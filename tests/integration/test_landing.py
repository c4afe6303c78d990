"""Files into the raw table: every format, and nothing lost over a broken line."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from orchestration.lib import landing
from orchestration.lib.landing import (
    expand_patterns,
    land_files,
    land_independent_totals,
    land_new_files,
    land_new_independent_totals,
)
from orchestration.lib.project import MeteringError, Settings
from orchestration.lib.warehouse import Warehouse, connect

MakeEvent = Callable[..., dict[str, Any]]
FIELDS = "idempotency_key, event_type, schema_version, customer_id, occurred_at, properties"


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with its landing tables, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "metering.duckdb"
    with connect(Settings(database=path, target="ci")):
        pass
    return path


@pytest.fixture
def connection(empty_database: Path, tmp_path: Path) -> Iterator[Warehouse]:
    path = tmp_path / "metering.duckdb"
    path.write_bytes(empty_database.read_bytes())
    with connect(Settings(database=path, target="ci")) as opened:
        yield opened


def land(connection: Warehouse, *paths: Path) -> list[Any]:
    return land_files(connection, paths, progress=lambda _: None)


def landed(connection: Warehouse, columns: str = FIELDS) -> list[tuple[Any, ...]]:
    return connection.execute(f"select {columns} from raw.usage_events order by batch_id, line_number").fetchall()


EXPECTED = ("k1", "llm_request", "1", "cus_000", "2026-09-10T12:00:00Z")
PROPERTIES = {"service": "code", "context_tokens": 100, "generated_tokens": 10}


def check_one(connection: Warehouse) -> None:
    rows = landed(connection)
    assert len(rows) == 1
    assert rows[0][:5] == EXPECTED
    assert {name: str(value) for name, value in json.loads(rows[0][5]).items()} == {
        name: str(value) for name, value in PROPERTIES.items()
    }


def test_lines_plain_and_gzipped(connection: Warehouse, tmp_path: Path, make_event: MakeEvent) -> None:
    line = json.dumps(make_event("k1")).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(line)
    (tmp_path / "b.ndjson.gz").write_bytes(gzip.compress(line))
    batches = land(connection, tmp_path / "a.jsonl", tmp_path / "b.ndjson.gz")
    assert [batch.deliveries for batch in batches] == [1, 1]
    rows = landed(connection)
    assert rows[0] == rows[1]
    assert rows[0][:5] == EXPECTED
    assert json.loads(rows[0][5]) == PROPERTIES


def test_array_of_events(connection: Warehouse, tmp_path: Path, make_event: MakeEvent) -> None:
    (tmp_path / "a.json").write_text(json.dumps([make_event("k1")], indent=2))
    land(connection, tmp_path / "a.json")
    check_one(connection)


def test_csv_with_properties_as_json(connection: Warehouse, tmp_path: Path) -> None:
    properties = json.dumps(PROPERTIES).replace('"', '""')
    (tmp_path / "a.csv").write_text(
        f'{FIELDS.replace(" ", "")}\nk1,llm_request,1,cus_000,2026-09-10T12:00:00Z,"{properties}"\n'
    )
    land(connection, tmp_path / "a.csv")
    check_one(connection)


def test_csv_whose_other_columns_are_properties(connection: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "idempotency_key,event_type,schema_version,customer_id,occurred_at,service,context_tokens,generated_tokens\n"
        "k1,llm_request,1,cus_000,2026-09-10T12:00:00Z,code,100,10\n"
    )
    land(connection, tmp_path / "a.csv")
    check_one(connection)


def test_broken_csv_record_does_not_stop_the_file(connection: Warehouse, tmp_path: Path) -> None:
    header = "idempotency_key,event_type,schema_version,customer_id,occurred_at,service\n"
    good = "{},llm_request,1,cus_000,2026-09-10T12:00:00Z,code\n"
    (tmp_path / "a.csv").write_text(
        header + good.format("k1") + "k2,llm_request,1\n" + good.format("k3") + good.format("k4")
    )
    (batch,) = land(connection, tmp_path / "a.csv")
    assert (batch.deliveries, batch.unreadable) == (4, 1)
    rows = landed(connection, "line_number, idempotency_key, landing_error_code, raw_record")
    assert [row[:3] for row in rows] == [
        (2, "k1", None),
        (3, None, "unparseable_record"),
        (4, "k3", None),
        (5, "k4", None),
    ]
    assert "k2,llm_request,1" in rows[1][3]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_byte_order_mark(connection: Warehouse, tmp_path: Path, make_event: MakeEvent, mark: bytes) -> None:
    lines = json.dumps(make_event("k1")).encode() + b"\n" + json.dumps(make_event("k2")).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(mark + lines)
    (tmp_path / "b.jsonl").write_bytes(mark + b"\xff\n" + lines)
    (tmp_path / "c.csv").write_bytes(mark + b"idempotency_key,event_type\nk3,llm_request\n")
    (tmp_path / "d.json").write_bytes(mark + json.dumps([make_event("k4")]).encode())
    land(connection, *(tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.csv", "d.json")))
    assert [row[0] for row in landed(connection, "idempotency_key")] == ["k1", "k2", None, "k1", "k2", "k3", "k4"]


def test_a_file_that_cannot_be_read_does_not_stop_the_others(
    connection: Warehouse, tmp_path: Path, make_event: MakeEvent
) -> None:
    for name in ("a.jsonl", "c.jsonl"):
        (tmp_path / name).write_text(json.dumps(make_event(name)) + "\n")
    (tmp_path / "b.txt").write_text("notes")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(MeteringError, match=r"b\.txt: unknown format"):
        land(connection, *(tmp_path / name for name in ("a.jsonl", "b.txt", "c.jsonl", "empty.jsonl")))
    assert [row[0] for row in landed(connection, "idempotency_key")] == ["a.jsonl", "c.jsonl"]
    assert connection.execute("select count(*) from raw.load_batches").fetchone() == (3,)


@pytest.mark.parametrize("properties", ["json text", "struct"])
def test_parquet(connection: Warehouse, tmp_path: Path, properties: str) -> None:
    expression = "'" + json.dumps(PROPERTIES) + "'" if properties == "json text" else str(PROPERTIES)
    duckdb.sql(
        f"copy (select 'k1' as idempotency_key, 'llm_request' as event_type, 1 as schema_version, "
        f"'cus_000' as customer_id, timestamp '2026-09-10 12:00:00' as occurred_at, {expression} as properties) "
        f"to '{tmp_path / 'a.parquet'}' (format parquet)"
    )
    land(connection, tmp_path / "a.parquet")
    (row,) = landed(connection)
    assert row[:5] == (*EXPECTED[:4], "2026-09-10 12:00:00")
    assert json.loads(row[5]) == PROPERTIES


def test_cloud_events(connection: Warehouse, tmp_path: Path) -> None:
    event = {
        "specversion": "1.0",
        "id": "42",
        "source": "urn:sample:gateway",
        "type": "llm_request",
        "subject": "cus_000",
        "time": "2026-09-10T12:00:00Z",
        "data": PROPERTIES,
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(event) + "\n" + json.dumps(event | {"schemaversion": "2"}) + "\n")
    land(connection, tmp_path / "a.jsonl")
    first, second = landed(connection)
    assert first[:5] == ('["urn:sample:gateway","42"]', *EXPECTED[1:])
    assert json.loads(first[5]) == PROPERTIES
    assert second[2] == "2"


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_broken_lines_keep_their_number_and_text(
    connection: Warehouse, tmp_path: Path, make_event: MakeEvent, newline: bytes
) -> None:
    good = [json.dumps(make_event(f"k{number}")).encode() for number in range(3)]
    lines = [
        good[0],
        b"",
        b'{"idempotency_key": "cut',
        b"   ",
        b"[1, 2]",
        good[1],
        b"null",
        b"bad \xff\xfe bytes",
        good[2],
    ]
    (tmp_path / "a.jsonl").write_bytes(newline.join(lines))
    (batch,) = land(connection, tmp_path / "a.jsonl")
    assert (batch.deliveries, batch.unreadable) == (7, 4)
    rows = landed(connection, "line_number, idempotency_key, landing_error_code, landing_error, raw_record")
    assert [row[:3] for row in rows] == [
        (1, "k0", None),
        (3, None, "unparseable_json"),
        (5, None, "unparseable_json"),
        (6, "k1", None),
        (7, None, "unparseable_json"),
        (8, None, "unparseable_json"),
        (9, "k2", None),
    ]
    assert rows[1][4] == '{"idempotency_key": "cut'
    assert rows[1][3].startswith("line 3 is not a JSON object")
    assert "not valid UTF-8" in rows[5][4]


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n{"b": 2}\r\n{"c": 3}\n',
        b'{"a": "\x01"}\n{"b": 2}\n{"c": 3}\n',
        b'{"a": "\x00"}\n{"b": 2}\n{"c": 3}',
        b'{"a": 1}\r{"x": 1}\n{"b": 2}\n{"c": 3}\n',
    ],
    ids=["mixed newlines", "delimiter character", "zero byte", "lone carriage return"],
)
def test_unusual_bytes_shift_no_line(connection: Warehouse, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    land(connection, tmp_path / "a.jsonl")
    assert [row[0] for row in landed(connection, "line_number")] == [1, 2, 3]
    assert [row[0] for row in landed(connection, "landing_error_code")][1:] == [None, None]


def test_line_numbers_follow_the_file_when_it_is_read_in_parallel(
    connection: Warehouse, tmp_path: Path, make_event: MakeEvent
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(make_event(str(n))) + "\n" for n in range(1, 300_001)))
    land(connection, tmp_path / "a.jsonl")
    (row,) = connection.execute(
        "select count(*), count(*) filter (idempotency_key::bigint = line_number) from raw.usage_events"
    ).fetchall()
    assert row == (300_000, 300_000)


def test_numbers_keep_their_digits(connection: Warehouse, tmp_path: Path) -> None:
    line = (
        '{"idempotency_key": "12345678901234567890", "properties": {"a": 1234567890.123456789, "b": 100000000.000000001, '
        '"c": "text, 1234567890.123456789 \\" kept", "d": 0.5, "e": -9007199254740993.5, "f": 12345678901234567890123}}\n'
    )
    (tmp_path / "a.jsonl").write_text(line)
    land(connection, tmp_path / "a.jsonl")
    ((key, properties),) = landed(connection, "idempotency_key, properties")
    assert key == "12345678901234567890"
    assert {name: str(value) for name, value in json.loads(properties).items()} == {
        "a": "1234567890.123456789",
        "b": "100000000.000000001",
        "c": 'text, 1234567890.123456789 " kept',
        "d": "0.5",
        "e": "-9007199254740993.5",
        "f": "12345678901234567890123",
    }


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_numbers_keep_their_digits_inside_text_and_tables(connection: Warehouse, tmp_path: Path, name: str) -> None:
    properties = '{"a": 1234567890.123456789, "b": 9999999999999999e-9}'
    path = tmp_path / name
    if name == "a.jsonl":
        path.write_text(json.dumps({"idempotency_key": "k", "properties": properties}) + "\n")
    elif name == "a.csv":
        path.write_text('idempotency_key,properties\nk,"' + properties.replace('"', '""') + '"\n')
    else:
        duckdb.sql(f"copy (select 'k' as idempotency_key, '{properties}' as properties) to '{path}' (format parquet)")
    land(connection, path)
    ((landed_properties,),) = landed(connection, "properties")
    assert json.loads(landed_properties) == {"a": "1234567890.123456789", "b": "9999999999999999e-9"}


def test_an_open_quote_lands_nothing(connection: Warehouse, tmp_path: Path) -> None:
    """Everything after it would be lost in the quote."""
    rows = [f"k{number},llm_request\n" for number in range(30_000)]
    rows[25_000] = '"q,llm_request\n'
    (tmp_path / "a.csv").write_text("idempotency_key,event_type\n" + "".join(rows))
    with pytest.raises(MeteringError, match=r"a\.csv"):
        land(connection, tmp_path / "a.csv")
    assert landed(connection) == []


def test_file_names_are_no_patterns(connection: Warehouse, tmp_path: Path) -> None:
    folder = tmp_path / "customer_id=cus_009"
    folder.mkdir()
    for path, key in (
        (tmp_path / "a[1].csv", "right"),
        (tmp_path / "a1.csv", "wrong"),
        (folder / "a.csv", "partition"),
    ):
        path.write_text(f"idempotency_key,customer_id\n{key},cus_000\n")
    (named,) = expand_patterns([str(tmp_path / "a[1].csv")])
    land(connection, named, folder / "a.csv")
    assert landed(connection, "idempotency_key, customer_id") == [("right", "cus_000"), ("partition", "cus_000")]


def test_cloud_events_of_different_sources_are_different(connection: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"specversion": "1.0", "source": "a|b", "id": "c"}\n{"specversion": "1.0", "source": "a", "id": "b|c"}\n'
    )
    land(connection, tmp_path / "a.jsonl")
    first, second = landed(connection, "idempotency_key")
    assert first != second


@pytest.mark.parametrize("lacking", [{"id": None}, {"source": None}, {"id": " "}, {"source": ""}])
def test_a_cloud_event_without_id_or_source_has_no_key(
    connection: Warehouse, tmp_path: Path, lacking: dict[str, str | None]
) -> None:
    """Otherwise all that lack it would be copies of the first, and their usage lost."""
    event = {"specversion": "1.0", "id": "42", "source": "/s", "type": "llm_request"} | lacking
    (tmp_path / "a.jsonl").write_text(json.dumps({name: value for name, value in event.items() if value is not None}))
    land(connection, tmp_path / "a.jsonl")
    assert landed(connection, "idempotency_key, event_type") == [(None, "llm_request")]


def test_loading_a_file_again_says_so(connection: Warehouse, tmp_path: Path, make_event: MakeEvent) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(make_event("k1")) + "\n")
    (first,) = land(connection, tmp_path / "a.jsonl")
    messages: list[str] = []
    (second,) = land_files(connection, [tmp_path / "a.jsonl"], progress=messages.append)
    assert second.earlier_batch_id == first.batch_id
    assert first.batch_id in messages[0]
    assert len(landed(connection)) == 2


def test_new_files_land_once_and_grown_ones_again(connection: Warehouse, tmp_path: Path, make_event: MakeEvent) -> None:
    folder = tmp_path / "landing"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps(make_event("k1")) + "\n")

    def land_new() -> int:
        return sum(batch.deliveries for batch in land_new_files(connection, folder, progress=lambda _: None))

    assert land_new() == 1
    assert land_new() == 0
    with (folder / "a.jsonl").open("a") as stream:
        stream.write(json.dumps(make_event("k2")) + "\n")
    assert land_new() == 2
    (folder / "a.jsonl").write_text((folder / "a.jsonl").read_text().replace("k1", "k3"))
    os.utime(folder / "a.jsonl", ns=(1, 1))
    assert land_new() == 2


def test_a_file_that_is_being_written_waits(
    connection: Warehouse, tmp_path: Path, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "landing"
    folder.mkdir()
    for name, key in (("a.jsonl", "k1"), ("b.jsonl", "k2"), (".c.jsonl", "k3")):
        (folder / name).write_text(json.dumps(make_event(key)) + "\n")
    read_lines = landing._insert_lines

    def grow(raw: Any, path: Path, *arguments: Any) -> int:
        counted = read_lines(raw, path, *arguments)
        if path.name == "a.jsonl":
            with path.open("a") as stream:
                stream.write(json.dumps(make_event("k4")) + "\n")
        return counted

    messages: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(landing, "_insert_lines", grow)
        with pytest.raises(MeteringError, match=r"a\.jsonl: was written to while it was read"):
            land(connection, folder / "a.jsonl")
        land_new_files(connection, folder, progress=messages.append)
    assert landed(connection, "idempotency_key") == [("k2",)]
    assert any("a.jsonl: was written to while it was read, nothing of it was landed" in text for text in messages)
    land_new_files(connection, folder, progress=messages.append)
    assert sorted(landed(connection, "idempotency_key")) == [("k1",), ("k2",), ("k4",), ("k4",)]
    assert connection.execute("select sum(deliveries) from raw.load_batches").fetchall() == [(4,)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "unknown format"),
        ("a.json", b"[{", "is not valid JSON"),
        ("a.csv", b"x,y\n1,2\n", "has no column idempotency_key"),
        ("a.parquet", b"not parquet", "cannot be read as parquet"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
    ],
)
def test_unreadable_files_land_nothing_and_say_why(
    connection: Warehouse, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MeteringError, match=message) as raised:
        land(connection, tmp_path / name)
    assert name in str(raised.value)
    assert landed(connection) == []
    assert connection.execute("select count(*) from raw.load_batches").fetchone() == (0,)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "text"])
def test_a_damaged_gzip_file_does_not_stop_the_others(
    connection: Warehouse, tmp_path: Path, make_event: MakeEvent, name: str, damage: str
) -> None:
    lines = [json.dumps(make_event(f"k{number}", p_note=f"{number * 7919}")) for number in range(2000)]
    text = {"jsonl": "\n".join(lines), "json": f"[{','.join(lines)}]", "csv": "idempotency_key\n" + "\n".join(lines)}
    content = bytearray(gzip.compress(text[name.split(".")[1]].encode()))
    if damage == "flipped":
        content[len(content) // 2 : len(content) // 2 + 64] = b"\xff" * 64
    elif damage == "cut":
        del content[len(content) // 2 :]
    else:
        content = bytearray(b"idempotency_key\nk1\n")
    (tmp_path / name).write_bytes(content)
    (tmp_path / "z.jsonl").write_text(json.dumps(make_event("good")) + "\n")
    with pytest.raises(MeteringError, match=rf"{name}: cannot be read.*nothing of it was landed"):
        land(connection, tmp_path / name, tmp_path / "z.jsonl")
    assert landed(connection, "idempotency_key") == [("good",)]


def test_patterns_name_what_they_do_not_find(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").touch()
    (tmp_path / "a.jsonl").touch()
    assert expand_patterns([f"{tmp_path}/*.jsonl", f"{tmp_path}/a.jsonl"]) == [
        tmp_path / "a.jsonl",
        tmp_path / "b.jsonl",
    ]
    with pytest.raises(MeteringError, match=r"nothing.*: no such file"):
        expand_patterns([f"{tmp_path}/nothing*.jsonl"])


TOTALS_HEADER = "metric_code,customer_id,dimensions,period_start_at,period_end_at,quantity,source\n"
TOTAL = "requests,cus_000,,2026-09-01T00:00:00Z,2026-10-01T00:00:00Z,12.5,gateway\n"


def test_independent_totals(connection: Warehouse, tmp_path: Path) -> None:
    folder = tmp_path / "totals"
    folder.mkdir()
    (folder / "t.csv").write_text(TOTALS_HEADER + TOTAL + TOTAL.replace(",,", ',"{""service"":""code""}",'))
    assert land_new_independent_totals(connection, folder, progress=lambda _: None) == 2
    assert land_new_independent_totals(connection, folder, progress=lambda _: None) == 0
    rows = connection.execute("select dimensions, quantity::varchar from raw.independent_totals order by 1").fetchall()
    assert rows == [("", "12.500000000"), ('{"service": "code"}', "12.500000000")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("12.5", "many", "line 3: quantity = 'many' is not a number"),
        ("12.5", "NaN", "line 3: quantity = 'NaN' is not a finite number"),
        ("12.5", "1e40", "line 3: quantity = '1e40' is not a finite number"),
        ("2026-09-01T00:00:00Z", "2026-09-01T00:30:00Z", "line 3: period_start_at = .* is not on the full hour"),
        ("2026-10-01T00:00:00Z", "2026-08-01T00:00:00Z", "line 3: period_end_at = .* does not lie after"),
        ("2026-10-01T00:00:00Z", "soon", "line 3: period_end_at = 'soon' is not an ISO 8601"),
        ("cus_000,,", "cus_000,code,", "line 3: dimensions = 'code' is neither empty nor a JSON object"),
        ("cus_000", "", "line 3: customer_id = '' is blank"),
    ],
)
def test_bad_independent_totals_land_nothing(
    connection: Warehouse, tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TOTALS_HEADER + TOTAL + TOTAL.replace(old, new, 1))
    with pytest.raises(MeteringError, match=message) as raised:
        land_independent_totals(connection, path, progress=lambda _: None)
    assert "t.csv" in str(raised.value)
    assert connection.execute("select count(*) from raw.independent_totals").fetchone() == (0,)
