"""The commands on Snowflake: the real connector and the real dbt adapter against the stand-in, beside the same on DuckDB."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
import stripe
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from orchestration import cli
from orchestration.lib.demo_events import write_demo_data
from orchestration.lib.explain import explain_line
from orchestration.lib.landing import SHADOW_FIELDS, land_files, land_independent_totals, land_shadow_billing
from orchestration.lib.price_book import price_book_hash, record_price_book, restore_price_book
from orchestration.lib.project import PROJECT_DIR, MeteringError, Settings, read_settings, run_dbt
from orchestration.lib.scenario import list_prefixes
from orchestration.lib.snowflake_warehouse import SnowflakeWarehouse, open_snowflake, with_question_marks
from orchestration.lib.stripe_lock import SyncLock, SyncLockError, hold_sync_lock
from orchestration.lib.stripe_readback import read_back_invoices
from orchestration.lib.stripe_target import open_stripe_target
from orchestration.lib.warehouse import MissingObjectError, Result, Warehouse, WarehouseError, append_rows, connect
from tests.integration.conftest import llm_request
from tests.snowflake.standin import Standin

# What the commands read.
READ = (
    "+fct_invoices", "+fct_pending_adjustments", "+fct_guard_measurements", "+fct_rated_line_tiers", "+fct_unbilled_usage",
    "+stripe_invoice_items", "+stripe_meter_events", "dim_customers", "dim_billable_metrics", "resource_type:seed",
)  # fmt: skip
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
        for table in ("usage_events", "load_batches", "independent_totals", "shadow_billing"):
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
    billed = warehouse.execute(
        "select line_number, system, customer_id, billing_period, charge_code, currency_code, quantity, event_count, amount "
        "from raw.shadow_billing order by line_number"
    )
    return {"events": events.rows, "batches": batches.rows, "totals": totals.rows, "billed": billed.rows}


def files_of_every_format(folder: Path) -> list[Path]:
    """Each format, broken records of each kind, and texts that a loader could mistake for something else."""
    good = [json.dumps(llm_request(f"k{number}")).encode() for number in range(3)]
    awkward = json.dumps(
        llm_request(
            "\\N", customer_id="", p_service="é\t'\"\\\u2028", p_context_tokens="12345678901234567890.123456789"
        )
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
    billed = tmp_path / "billed.csv"
    billed.write_text(
        f"{','.join(SHADOW_FIELDS)}\n"
        "other_system,\\N,2026-09,,KWD,,,-0.000000001\n"
        "other_system,cus_1,2026-09,calls,USD,9999999999999999999.123456789,0,999999999999999.5\n"
    )
    with connect(Settings(database=tmp_path / "duckdb" / "metering.duckdb", target="ci")) as beside:
        expected_batches = land(beside, *files)
        land_independent_totals(beside, totals, progress=lambda _: None)
        land_shadow_billing(beside, billed, progress=lambda _: None)
        expected = landed(beside)
    batches = land(warehouse, *files)
    land_independent_totals(warehouse, totals, progress=lambda _: None)
    land_shadow_billing(warehouse, billed, progress=lambda _: None)
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
    history = "select count(*) from information_schema.load_history where table_name = 'USAGE_EVENTS'"
    ((files_before,),) = warehouse.execute(history).rows
    (batch,) = land(warehouse, path)
    assert batch.deliveries == 300_000
    assert warehouse.execute(
        "select count(*), count(distinct idempotency_key), count(distinct line_number) from raw.usage_events"
    ).fetchone() == (300_000, 300_000, 300_000)
    assert warehouse.execute(history).rows[0][0] > files_before + 1


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
        patch.undo()
        assert landed(warehouse) == {"events": [], "batches": [], "totals": [], "billed": []}
        land(warehouse, tmp_path / "a.jsonl")
    assert [len(rows) for rows in landed(warehouse).values()] == [3, 1, 0, 0]


def test_a_copy_that_is_refused_or_incomplete_lands_nothing(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def land_a_batch_without_source() -> None:
        with warehouse.landing() as connection:
            connection.execute(
                "insert into raw.usage_events by name "
                "select 'b' as batch_id, 1 as line_number, 's' as source, timestamp '2026-09-01' as received_at"
            )
            connection.execute("insert into raw.load_batches by name select 'b' as batch_id")

    with pytest.raises(WarehouseError, match="NOT NULL"):
        land_a_batch_without_source()
    assert landed(warehouse)["events"] == []

    (tmp_path / "a.jsonl").write_text(json.dumps(llm_request("k")) + "\n")
    monkeypatch.setattr("orchestration.lib.snowflake_warehouse._count", lambda rows, table: 2)
    with pytest.raises(MeteringError, match=r"a\.jsonl: is not landed: COPY INTO raw\.\w+ took \d rows of 2"):
        land(warehouse, tmp_path / "a.jsonl")
    assert landed(warehouse) == {"events": [], "batches": [], "totals": [], "billed": []}


def test_parameters_types_and_errors(warehouse: Warehouse) -> None:
    row = warehouse.execute(
        "select $word as word, cast($amount as number(38, 9)) as amount, cast($at as timestamp_ntz) as at, $nothing as nothing, $word as again",
        {"word": "it's", "amount": "0.1", "at": datetime(2026, 9, 1, 0, 0, 0, 1), "nothing": None},
    )
    assert row.records() == [
        {
            "word": "it's",
            "amount": Decimal("0.1"),
            "at": datetime(2026, 9, 1, 0, 0, 0, 1),
            "nothing": None,
            "again": "it's",
        }
    ]
    assert with_question_marks("select $a, '$a ''$b', $b -- $a\n, $a", {"a": 1, "b": 2}) == (
        "select ?, '$a ''$b', ? -- $a\n, ?",
        [1, 2, 1],
    )
    awkward = "it's \\n \\' a \"path\""
    assert warehouse.execute(f"select {warehouse.literal(awkward)}").rows == [(awkward,)]
    assert warehouse.execute(
        f'select {warehouse.property_text("p", "a b")} from (select \'{{"a b": "c"}}\' as p)'
    ).rows == [("c",)]
    with pytest.raises(MissingObjectError, match="NOWHERE"):
        warehouse.execute("select * from marts.nowhere")
    with pytest.raises(WarehouseError):
        warehouse.execute("select 1 +")


def test_a_price_book_comes_back(warehouse: Warehouse, project_copy: Path, tmp_path: Path) -> None:
    charges = project_copy / "seeds" / "pricing" / "charges.csv"
    charges.write_bytes(charges.read_bytes() + 'x,"it\'s ""quo""te\\n",ЖЗ 単価\r\n'.encode())
    assert record_price_book(warehouse, project_copy) == record_price_book(warehouse, project_copy)
    restored = restore_price_book(warehouse, price_book_hash(project_copy), tmp_path / "seeds")
    assert warehouse.execute("select count(*) from ledger.price_books").rows == [(len(restored),)]
    for path in restored:
        assert path.read_bytes() == (project_copy / "seeds" / path.relative_to(tmp_path / "seeds")).read_bytes()


class Side:
    """A warehouse as a person at the command line meets it, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], **environment: str) -> None:
        self._capsys = capsys
        self._environment = environment

    @contextlib.contextmanager
    def environment(self) -> Iterator[Settings]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment.items():
                patch.setenv(name, value)
            patch.delenv("STRIPE_API_KEY", raising=False)
            yield read_settings()

    def run(self, *arguments: str) -> tuple[Any, str]:
        """Exit code and output of a command, standard error last."""
        code: Any = 0
        with self.environment(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["metering", *arguments])
            try:
                cli.main()
            except SystemExit as stopped:
                code = stopped.code
        captured = self._capsys.readouterr()
        return code, captured.out + captured.err

    def build(self, as_of: str) -> None:
        """Build, without data tests and marts that no command here reads: make test-snowflake runs them, on all marts."""
        with self.environment() as settings:
            with connect(settings) as warehouse:
                record_price_book(warehouse, settings.project)
            run_dbt(
                settings,
                *("build", "--resource-type", "seed", "model", "--select", *READ),
                *("--vars", f"{{as_of: '{as_of}'}}"),
                quiet=True,
            )
            with connect(settings) as warehouse:
                warehouse.execute("update ops.build_log set is_whole = true")

    def succeed(self, *arguments: str) -> str:
        code, output = self.run(*arguments)
        assert code == 0, output
        return output

    @contextlib.contextmanager
    def session(self) -> Iterator[Warehouse]:
        with self.environment() as settings, connect(settings) as warehouse:
            yield warehouse

    def lines_in_stripe(self) -> list[str]:
        """The line id of every line of an invoice in the local Stripe server."""
        with self.environment() as settings, open_stripe_target({}, settings.stripe_state) as target:
            return sorted(line_id for invoice in read_back_invoices(target) for line_id in invoice.line_ids)


def without_sql(text: str) -> str:
    """An explanation without the SQL that lists the events, which is each warehouse's own."""
    return text.partition("the SQL that lists the events:")[0]


def sync_log(side: Side) -> set[tuple[Any, ...]]:
    with side.session() as warehouse:
        return set(warehouse.execute("select * from ops.stripe_sync_log").rows)


def crash_after(side: Side, calls: int, *arguments: str) -> list[int]:
    """Run a command whose process dies when Stripe has answered the given number of calls that add lines.

    Returns:
        For each call that creates something, how many intents of it another session saw in the log before it was sent.
    """
    seen: list[int] = []
    adding: list[str] = []
    send = stripe.RequestsClient.request

    with side.session() as observer, pytest.MonkeyPatch.context() as patch:

        def request(self: Any, method: str, url: str, headers: Any, post_data: Any = None) -> Any:
            if method != "post":
                return send(self, method, url, headers, post_data)
            ((intents,),) = observer.execute(
                "select count(*) from ops.stripe_sync_log where step = 'intent' and idempotency_key = ?",
                [headers["Idempotency-Key"]],
            ).rows
            seen.append(intents)
            answer = send(self, method, url, headers, post_data)
            adding.extend([url] if url.endswith("/add_lines") else [])
            if len(adding) == calls:
                raise Crash
            return answer

        patch.setattr(stripe.RequestsClient, "request", request)
        with pytest.raises(Crash):
            side.run(*arguments)
    return seen


def ledger(side: Side) -> list[Any]:
    """The lines of the ledger, but for the time of the close, which is the last column."""
    with side.session() as warehouse:
        return [row[:-1] for row in warehouse.execute("select * from ledger.billing_ledger order by line_id").rows]


def crash_in_the_close(side: Side) -> None:
    """Die when the lines are appended and the period is not marked as closed yet: nothing of it stays."""
    execute = SnowflakeWarehouse.execute

    def dying(self: SnowflakeWarehouse, sql: str, parameters: Any = ()) -> Any:
        if "insert into ledger.closed_periods" in sql:
            raise Crash
        return execute(self, sql, parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SnowflakeWarehouse, "execute", dying)
        with pytest.raises(Crash):
            side.run("close", "--period", "2026-09")
    with side.session() as warehouse:
        assert warehouse.execute("select count(*) from ledger.billing_ledger").rows == [(0,)]


def test_from_files_to_draft_invoices_as_on_duckdb(
    standin: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One story on one build, since builds take their time: load, build, a breach that lets nothing through and is then
    accepted; a sync that crashes, one that ends, one with nothing to do; invoices, explanations, Dagster."""
    in_snowflake = {
        "METERING_TARGET": "standin",
        "DBT_TARGET_PATH": str(tmp_path / "snowflake_target"),
        **standin.environment("FLOW"),
    }
    snowflake = Side(capsys, METERING_STATE_DIR=str(tmp_path / "state"), **in_snowflake)
    beside = Side(
        capsys,
        METERING_TARGET="ci",
        METERING_DUCKDB_PATH=str(tmp_path / "duckdb" / "metering.duckdb"),
    )
    data = write_demo_data(tmp_path / "events", events=12_000)
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{broken\n" * 100)
    for side in (beside, snowflake):
        assert "12,352 deliveries in 5 batches" in side.succeed("load", *map(str, data.event_files), str(broken))
        side.succeed("load", "--totals", str(data.independent_totals))
    as_of = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    for side in (beside, snowflake):
        side.build(as_of)

    code, checked = snowflake.run("check")
    assert code == 1
    assert "ok   accuracy: 192 measured, 0 in breach" in checked
    assert "FAIL ingestion_error_rate: 1 measured, 1 in breach" in checked
    assert (code, checked.replace(str(tmp_path / "state"), "")) == (
        1,
        beside.run("check")[1].replace(str(tmp_path / "duckdb"), ""),
    )
    code, output = snowflake.run("sync")
    assert code == 1
    assert "Guards failed, nothing is closed or sent to Stripe" in output
    assert snowflake.lines_in_stripe() == []
    assert sync_log(snowflake) == set()

    # As a row of guard_exceptions.csv and another build would.
    for side in (beside, snowflake):
        with side.session() as warehouse:
            warehouse.execute(
                "update marts.fct_guard_measurements set exception_reason = 'known' where guard_code = 'ingestion_error_rate'"
            )
    assert "ok   ingestion_error_rate: 1 measured, 0 in breach" in snowflake.succeed("check")

    crash_in_the_close(snowflake)
    for side in (beside, snowflake):
        assert "run 2026-09.1: 40 customers closed" in side.succeed("close", "--period", "2026-09")
        assert "2026-09: nothing to append" in side.succeed("close", "--period", "2026-09")
    assert ledger(snowflake) == ledger(beside) != []
    exported = (
        f"select * exclude (closed_at) from '{tmp_path}/state/metering.ledger/2026-09.1.parquet' order by line_id"
    )
    assert duckdb.sql(exported).fetchall() == ledger(snowflake)
    *intents, of_lines = crash_after(snowflake, 2, "sync", "--period", "2026-09")
    assert len(intents) >= 4
    assert all(intents)
    assert of_lines > 1
    crashed = sync_log(snowflake)
    with snowflake.session() as warehouse:
        steps = dict(warehouse.execute("select step, count(*) from ops.stripe_sync_log group by step").rows)
        to_send = warehouse.execute(
            "select line_id from marts.stripe_invoice_items "
            "where hold_reason is null and billing_period = '2026-09' order by line_id"
        ).rows
    assert steps == {"intent": sum(intents) + of_lines, "confirmed": sum(intents)}
    assert f", {of_lines} found in Stripe, " in snowflake.succeed("sync", "--period", "2026-09")
    assert snowflake.lines_in_stripe() == [line_id for (line_id,) in to_send] != []
    synced = sync_log(snowflake)
    assert synced > crashed
    assert f"lines: 0 created, 0 found in Stripe, {len(to_send)} there already" in snowflake.succeed(
        "sync", "--period", "2026-09"
    )
    assert sync_log(snowflake) == synced
    with snowflake.session() as warehouse:
        ((account,),) = warehouse.execute("select max(stripe_account) from ops.stripe_sync_log").rows
        SyncLock(warehouse, account, process_id="dead").take(take_over=False)
    code, output = snowflake.run("sync", "--period", "2026-09")
    assert code == 1
    assert f"Another sync of Stripe account {account} is at work" in output
    snowflake.succeed("sync", "--period", "2026-09", "--take-over")

    # Beside the present: another price book, and the closed run built again.
    tiers = (PROJECT_DIR / "seeds" / "pricing" / "charge_tiers.csv").read_text()
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "charge_tiers.csv").write_text(tiers.replace("0.0000025", "0.000003"))
    said = [side.succeed("whatif", str(tmp_path / "book"), "--format", "csv") for side in (beside, snowflake)]
    differences = [[line for line in text.splitlines() if line.startswith("book,")] for text in said]
    assert differences[0] == differences[1] != []
    assert "lines equal; in minor units: " in snowflake.succeed("reproduce", "--run", "2026-09.1")
    with snowflake.session() as warehouse:
        assert list_prefixes(warehouse) == []

    for filters in ((), ("--customer", "cus_004", "--period", "2026-10")):
        assert snowflake.succeed("invoices", *filters) == beside.succeed("invoices", *filters)
    one_of_each = (
        "select min(line_id) from marts.fct_rated_lines group by line_type, charge_model, metric_code order by 1"
    )
    with beside.session() as warehouse:
        line_ids = [line_id for (line_id,) in warehouse.execute(one_of_each).rows]
        expected = [explain_line(warehouse, line_id) for line_id in line_ids]
        expected_events = [warehouse.execute(line.events_sql or "select 0").rows for line in expected]
    with snowflake.session() as warehouse:
        found = [explain_line(warehouse, line_id) for line_id in line_ids]
        found_events = [warehouse.execute(line.events_sql or "select 0").rows for line in found]
    assert [without_sql(line.text) for line in found] == [without_sql(line.text) for line in expected]
    assert found_events == expected_events
    assert sum(len(events) for events in found_events) > 500
    with_events = next(line for line in found if line.events_sql is not None)
    assert "\nevents:\n2026-" in snowflake.succeed("explain", with_events.line_id[:10], "--events")

    landing = tmp_path / "state" / "landing" / "events"
    landing.mkdir(parents=True)
    (landing / "later.jsonl").write_text(json.dumps(llm_request("later")) + "\n")
    with beside.environment():
        # The definitions read the manifest when they are imported.
        from orchestration.defs.billing.assets import stripe_invoice_items
        from orchestration.defs.landing.assets import landed_files
    with snowflake.environment():
        assert dg.materialize([landed_files]).success
        assert dg.materialize([stripe_invoice_items], partition_key="2026-09-01").success
    with snowflake.session() as warehouse:
        assert warehouse.execute("select count(*) from raw.usage_events").fetchone() == (12_353,)
    assert sync_log(snowflake) == synced


def test_settings_come_from_the_profile_and_keep_their_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = "not-" + "a-password"
    for name, value in {
        "METERING_TARGET": "prod",
        "SNOWFLAKE_ACCOUNT": "Org-Account.eu",
        "SNOWFLAKE_USER": "loader",
        "SNOWFLAKE_PASSWORD": secret,
        "SNOWFLAKE_DATABASE": "Usage Data",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("METERING_STATE_DIR", raising=False)
    settings = read_settings()
    assert settings.snowflake is not None
    assert (settings.snowflake.user, settings.snowflake.password) == ("loader", secret)
    assert secret not in repr(settings)
    assert settings.stripe_state == PROJECT_DIR / "data" / "org-account.eu-usage_data" / "metering.stripe.sqlite"
    monkeypatch.setenv("METERING_STATE_DIR", str(tmp_path))
    assert read_settings().landing == tmp_path / "landing"

    monkeypatch.delenv("SNOWFLAKE_ACCOUNT")
    with pytest.raises(MeteringError, match="Set SNOWFLAKE_ACCOUNT"):
        read_settings()
    monkeypatch.setenv("METERING_TARGET", "nowhere")
    with pytest.raises(MeteringError, match="METERING_TARGET=nowhere"):
        read_settings()


def test_a_key_pair_opens_a_session_and_a_wrong_passphrase_does_not(landing_settings: Settings, tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path = tmp_path / "loader.p8"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"right"),
        )
    )
    assert landing_settings.snowflake is not None
    by_key = landing_settings.snowflake.replace(
        password=None, private_key_path=str(path), private_key_passphrase="right"
    )
    with contextlib.closing(open_snowflake(by_key, landing_settings.memory_limit)) as opened:
        assert opened.execute("select count(*) from raw.load_batches").fetchone() is not None
    for changes in ({"private_key_passphrase": "wrong"}, {"private_key_path": str(tmp_path / "missing.p8")}):
        with pytest.raises(WarehouseError, match=r"The private key of metering .* cannot be used") as refused:
            open_snowflake(by_key.replace(**changes), landing_settings.memory_limit)
        assert "wrong" not in str(refused.value)


def test_a_row_of_the_sync_log_is_durable_when_the_call_returns(
    landing_settings: Settings, warehouse: Warehouse
) -> None:
    row = {
        "attempt_id": "a",
        "logged_at": datetime(2026, 9, 1, 0, 0, 0, 1),
        "stripe_account": "acct_local",
        "entity": "customer",
        "entity_key": "cus_000",
        "step": "intent",
        "http_status": None,
        "amount_minor": -(2**62),
    }
    append_rows(warehouse, "ops.stripe_sync_log", [row])
    with connect(landing_settings) as another:
        found = another.execute("select * from ops.stripe_sync_log").records()
    assert found == [dict.fromkeys(found[0], None) | row]


def test_of_two_syncs_at_once_one_works_and_the_other_says_so(landing_settings: Settings, warehouse: Warehouse) -> None:
    account = "acct_local"
    with connect(landing_settings) as another:
        with hold_sync_lock(warehouse, account) as lock:
            with pytest.raises(SyncLockError, match="is at work"), hold_sync_lock(another, account, process_id="b"):
                pass
            with warehouse.transaction():
                lock.renew()
        # What a dead process has left is free after an hour, or taken over; the first finds out before its next call.
        left = SyncLock(warehouse, account, process_id="dead")
        left.take(take_over=False)
        with (
            hold_sync_lock(another, account, take_over=True),
            pytest.raises(SyncLockError, match="has taken over"),
            warehouse.transaction(),
        ):
            left.renew()
        left.take(take_over=False)
        another.execute("update ops.stripe_sync_lock set renewed_at = '2026-01-01' where stripe_account = ?", [account])
        with hold_sync_lock(another, account):
            pass


def test_a_role_that_sees_a_part_is_no_new_database(warehouse: Warehouse) -> None:
    assert warehouse.needs_landing_tables([])
    assert not warehouse.needs_landing_tables([("marts", "fct_invoices")])


def test_an_account_that_does_not_answer_is_an_error_without_secrets(
    monkeypatch: pytest.MonkeyPatch, standin: Standin, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("orchestration.lib.snowflake_warehouse._LOGIN_SECONDS", 1)
    side = Side(capsys, METERING_TARGET="standin", METERING_STANDIN_PORT="9", SNOWFLAKE_DATABASE="X")
    code, output = side.run("invoices")
    assert code == 1
    assert output.startswith("metering: Snowflake account standin cannot be used as metering: ")


def test_dagster_definitions_load_for_snowflake(standin: Standin, tmp_path: Path) -> None:
    """In a process of its own, since definitions take their target when they are imported."""
    program = (
        "from orchestration.definitions import defs; graph = defs.resolve_asset_graph(); "
        "print(defs.resources['dbt'].target, *sorted('/'.join(key.path) for key in graph.get_all_asset_keys()))"
    )
    environment = (
        os.environ
        | standin.environment("DAGSTER")
        | {"METERING_TARGET": "standin", "METERING_STATE_DIR": str(tmp_path)}
    )
    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert loaded.returncode == 0, loaded.stderr
    target, *keys = loaded.stdout.splitlines()[-1].split()
    assert target == "standin"
    assert {"raw/usage_events", "marts/stripe_invoice_items", "stripe/invoice_items"} <= set(keys)
