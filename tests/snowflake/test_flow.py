"""The commands on Snowflake: the real connector and the real dbt adapter against the stand-in, beside the same on DuckDB."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import stripe

from orchestration import cli
from orchestration.lib.demo_events import write_demo_data
from orchestration.lib.explain import explain_line
from orchestration.lib.landing import land_files, land_independent_totals
from orchestration.lib.project import MeteringError, Settings, read_settings
from orchestration.lib.snowflake_warehouse import SnowflakeWarehouse, with_question_marks
from orchestration.lib.stripe_target import open_stripe_target
from orchestration.lib.warehouse import MissingObjectError, Result, Warehouse, WarehouseError, connect
from tests.integration.conftest import llm_request
from tests.snowflake.standin import Standin

TOTALS_HEADER = "metric_code,customer_id,dimensions,period_start_at,period_end_at,quantity,source\n"


class Crash(BaseException):
    """The process dies: nothing may catch this."""


def use_standin(patch: pytest.MonkeyPatch, standin: Standin, database: str, folder: Path) -> Settings:
    """Point the commands of this process at a database of the stand-in."""
    for name, value in standin.environment(database).items():
        patch.setenv(name, value)
    patch.setenv("METERING_TARGET", "standin")
    patch.setenv("METERING_STATE_DIR", str(folder / "state"))
    patch.setenv("DBT_TARGET_PATH", str(folder / "target"))
    patch.setenv("DBT_LOG_PATH", str(folder / "logs"))
    patch.delenv("STRIPE_API_KEY", raising=False)
    return read_settings()


@pytest.fixture(scope="module")
def landing_settings(standin: Standin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A database of the stand-in with its landing tables, which dbt creates."""
    with pytest.MonkeyPatch.context() as patch:
        settings = use_standin(patch, standin, "LANDING", tmp_path_factory.mktemp("landing"))
        with connect(settings):
            pass
        yield settings


@pytest.fixture
def warehouse(landing_settings: Settings) -> Iterator[Warehouse]:
    """A session on that database, with nothing landed."""
    with connect(landing_settings) as opened:
        for table in ("usage_events", "load_batches", "independent_totals"):
            opened.execute(f"delete from raw.{table}")
        yield opened


def land(warehouse: Warehouse, *paths: Path) -> list[Any]:
    return land_files(warehouse, paths, progress=lambda _: None)


def landed(warehouse: Warehouse) -> dict[str, list[tuple[Any, ...]]]:
    """What landed, without what differs from one landing to the next: batch ids and times of receipt."""
    events = warehouse.execute(
        "select line_number, source, idempotency_key, event_type, schema_version, customer_id, occurred_at, properties, "
        "corrects, correction, landing_error_code, landing_error, raw_record from raw.usage_events order by source, line_number"
    )
    batches = warehouse.execute(
        "select source, file_sha256, file_bytes, file_modified_ns, deliveries from raw.load_batches order by source"
    )
    totals = warehouse.execute(
        "select line_number, metric_code, customer_id, dimensions, period_start_at, period_end_at, quantity, source "
        "from raw.independent_totals order by line_number"
    )
    return {"events": events.rows, "batches": batches.rows, "totals": totals.rows}


def files_of_every_format(folder: Path) -> list[Path]:
    """Each format, broken records of each kind, and texts that a loader could mistake for something else."""
    good = [json.dumps(llm_request(f"k{number}")).encode() for number in range(3)]
    awkward = json.dumps(
        llm_request("\\N", customer_id="", p_service="é\t'\"\\\u2028", p_context_tokens="12345678901234567890.123456789")
    ).encode()
    lines = [good[0], b"", b'{"idempotency_key": "cut', awkward, b"[1, 2]", good[1], b"null", good[2]]
    properties = '{""service"": ""code"", ""context_tokens"": 1234567890123456.5}'
    cloud_event = {"specversion": "1.0", "id": "42", "source": "urn:a", "type": "llm_request", "data": {"n": 1.10}}
    contents = {
        "a.jsonl": b"\n".join(lines),
        "b.ndjson.gz": gzip.compress(b"\r\n".join(lines)),
        "c.jsonl": b"bad \xff\xfe bytes\n" + json.dumps(cloud_event).encode(),
        "d.json": json.dumps([llm_request("d1"), llm_request("d2"), 7], indent=2).encode(),
        "e.csv": f'idempotency_key,event_type,properties\ne1,llm_request,"{properties}"\n\\N,,\n'.encode(),
        "f g's.csv": b"idempotency_key,event_type,customer_id,tokens\nf1,llm_request,c,1\nf2,broken\nf3,llm_request,c,3\n",
        "empty.jsonl": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    duckdb.sql(
        "copy (select 'p' || i as idempotency_key, 'llm_request' as event_type, 1 as schema_version, "
        "timestamp '2026-09-10 12:00:00.123456' as occurred_at, {'context_tokens': i, 'at': date '2026-09-10'} as properties "
        f"from range(5) as numbers(i)) to '{folder / 'h.parquet'}' (format parquet)"
    )
    return [folder / name for name in (*contents, "h.parquet")]


def test_files_of_every_format_land_as_on_duckdb(warehouse: Warehouse, tmp_path: Path) -> None:
    files = files_of_every_format(tmp_path)
    totals = tmp_path / "totals.csv"
    totals.write_text(
        TOTALS_HEADER
        + 'tokens,cus_1,"{""service"": ""\\\\N""}",2026-09-01T00:00:00+02:00,2026-10-01,9999999999999999999.123456789,x\n'
        + "tokens,cus_2,,2026-09-01,2026-10-01,-0.000000001,x\n"
    )
    with connect(Settings(database=tmp_path / "duckdb" / "metering.duckdb", target="ci")) as beside:
        expected_batches = land(beside, *files)
        land_independent_totals(beside, totals, progress=lambda _: None)
        expected = landed(beside)
    batches = land(warehouse, *files)
    land_independent_totals(warehouse, totals, progress=lambda _: None)
    assert landed(warehouse) == expected
    assert [(batch.deliveries, batch.unreadable) for batch in batches] == [
        (batch.deliveries, batch.unreadable) for batch in expected_batches
    ]
    assert sum(batch.unreadable for batch in batches) == 9
    received = warehouse.execute(
        "select count(*) from raw.usage_events inner join raw.load_batches using (batch_id, received_at)"
    )
    assert received.fetchone() == (len(expected["events"]),)

    # The same bytes again are another batch, since its files have other names on the stage; copies count once.
    (again,) = land(warehouse, files[0])
    assert (again.deliveries, again.earlier_batch_id) == (batches[0].deliveries, batches[0].batch_id)
    assert len(landed(warehouse)["batches"]) == len(files) + 1


def test_a_large_file_is_copied_in_chunks(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestration.lib.snowflake_warehouse._CHUNK_BYTES", 1024 * 1024)
    path = tmp_path / "a.parquet"
    duckdb.sql(
        "copy (select md5(i::varchar) as idempotency_key, 'x' as event_type, '{}' as properties "
        f"from range(300000) as numbers(i)) to '{path}' (format parquet)"
    )
    (batch,) = land(warehouse, path)
    assert batch.deliveries == 300_000
    assert warehouse.execute(
        "select count(*), count(distinct idempotency_key), count(distinct line_number) from raw.usage_events"
    ).fetchone() == (300_000, 300_000, 300_000)
    (files,) = warehouse.execute(
        "select count(*) from information_schema.load_history where table_name = 'USAGE_EVENTS' and file_name like ?",
        [f"%{'data'}%"],
    ).rows[-1]
    assert files > 1


@pytest.mark.parametrize("last_words", ["put ", "copy into raw.usage_events", "copy into raw.load_batches", "commit"])
def test_a_crash_in_the_middle_lands_nothing(
    landing_settings: Settings, warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_words: str
) -> None:
    """The process dies before or after a statement has run; another session sees nothing, and lands the file whole."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(llm_request(f"k{number}")) + "\n" for number in range(3)))
    execute = SnowflakeWarehouse.execute
    dead = False

    def dying(self: SnowflakeWarehouse, sql: str, parameters: Any = ()) -> Result:
        nonlocal dead
        dead = dead or (sql.strip().startswith(last_words) and last_words == "commit")
        if dead:
            raise Crash
        result = execute(self, sql, parameters)
        dead = sql.strip().startswith(last_words)
        return result

    with connect(landing_settings) as doomed, monkeypatch.context() as patch:
        patch.setattr(SnowflakeWarehouse, "execute", dying)
        with pytest.raises(Crash):
            land(doomed, tmp_path / "a.jsonl")
    assert landed(warehouse) == {"events": [], "batches": [], "totals": []}
    land(warehouse, tmp_path / "a.jsonl")
    assert [len(rows) for rows in landed(warehouse).values()] == [3, 1, 0]


def test_a_copy_that_snowflake_refuses_lands_nothing_and_names_the_file(warehouse: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(llm_request("k")) + "\n")
    warehouse.execute("alter table raw.load_batches rename to load_batches_away")
    try:
        with pytest.raises(MeteringError, match=r"a\.jsonl|LOAD_BATCHES"):
            land(warehouse, tmp_path / "a.jsonl")
    finally:
        warehouse.execute("alter table raw.load_batches_away rename to load_batches")
    assert landed(warehouse)["events"] == []
