"""The same raw rows, built by dbt on DuckDB and on Snowflake's adapter, give the same tables, row by row and digit by digit."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from orchestration.lib.demo_events import write_demo_data
from orchestration.lib.landing import land_independent_totals, land_shadow_billing
from orchestration.lib.project import Settings, read_settings, run_dbt
from orchestration.lib.warehouse import connect
from tests.integration.conformance.book import build_events, build_seeds
from tests.integration.conftest import Warehouse, llm_request
from tests.integration.price_books import write_seeds
from tests.integration.test_invariants import change_seed
from tests.snowflake.standin import Standin

OWN_EVENTS = "METERING_SNOWFLAKE_EVENTS"
EVENTS = 400
# Text that a loader, a JSON function, a key or a sort could treat differently, and numbers at the edge of their types.
# One customer of each kind of zone and currency: with a copy more, with another quantity, with none, and not known here.
BILLED_ELSEWHERE = """system,customer_id,billing_period,charge_code,currency_code,quantity,event_count,amount
other_system,cus_009,2026-09,usd-requests,USD,11,11,0.08
other_system,cus_009,2026-09,usd-context,USD,,,1.234567891
other_system,cus_001,2026-09,usd-sessions,USD,12.345,1,0.01
other_system,cus_002,2026-09,usd-sessions,USD,12.345,1,99
other_system,cus_004,2026-09,jpy-generated,JPY,,3,7
other_system,cus_005,2026-09,,KWD,,,1.005
other_system,cus_900,2026-09,usd-requests,USD,1,1,0.04
"""

AWKWARD_EVENTS = [
    llm_request("quote", event_type="assistant_session", properties={"user_id": 'a "b" \\ |c|', "duration_seconds": 0.1}),
    llm_request("unicode", event_type="assistant_session", properties={"user_id": "\u00e9\t\u2028\U0001f600", "duration_seconds": 1e-9}),
    llm_request("digits", event_type="assistant_session", properties={"user_id": "x", "duration_seconds": "12345.123456789"}),
    llm_request("exponent", event_type="assistant_session", properties={"user_id": "X", "duration_seconds": 1.5e3}),
    llm_request("overflow", event_type="assistant_session", properties={"user_id": "x", "duration_seconds": 10**30}),
    llm_request("offset", occurred_at="2026-09-10t12:59:59.999999999-04:30"),
    llm_request("microseconds", occurred_at="2026-09-10T12:00:00.000001Z"),
    llm_request("minutes", occurred_at="2026-09-10T12:00+05"),
    llm_request("no such day", occurred_at="2026-02-30T00:00:00Z"),
    llm_request("half", p_context_tokens=1.5),
    llm_request("quoted|key", p_context_tokens="7"),
    llm_request("nested", p_model={"b": 1, "a": [2, {"c": None}]}),
    llm_request("null", p_model=None),
]  # fmt: skip


def as_text(value: object) -> str:
    """A value with all its digits, so that 1.0 and 1.00 differ and no float comes in between."""
    if value is None:
        return "null"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="microseconds")
    assert not isinstance(value, float), f"{value} is a float: money and quantities must not be"
    return str(value)


CORRECTIONS = [
    llm_request("void", corrects="microseconds", correction="void", properties={}),
    llm_request("replacement", corrects="offset", correction="replace", p_context_tokens=7),
    llm_request("second replacement", corrects="replacement", correction="replace", p_context_tokens=70),
    llm_request("quoted|key", corrects="second replacement", correction="void"),
    llm_request("of another", corrects="null", correction="void", customer_id="cus_001"),
    llm_request("of nothing", corrects="nothing", correction="replace"),
    llm_request("of itself", corrects="of itself", correction="replace"),
]  # fmt: skip


class Pair:
    """One project on a DuckDB file and in a database of the stand-in."""

    def __init__(self, duckdb: Settings, snowflake: Settings, folder: Path) -> None:
        self.duckdb = Warehouse(duckdb, folder)
        self.snowflake = snowflake
        self._folder = folder
        self._copies = 0

    def copy_raw_rows(self) -> None:
        """Bring what has landed on DuckDB since the last copy to Snowflake, by Parquet, PUT and COPY INTO."""
        self._copies += 1
        for table in ("usage_events", "load_batches", "independent_totals", "shadow_billing"):
            path = self._folder / f"{table}_{self._copies}.parquet"
            with connect(self.snowflake) as target, connect(self.duckdb.settings) as source:
                copied = [row[0] for row in target.execute(f"select distinct batch_id from raw.{table}").rows]
                source.execute(
                    f"copy (select * from raw.{table} where not list_contains(cast($copied as varchar[]), batch_id)) "
                    f"to '{path}' (format parquet)",
                    {"copied": copied},
                )
                with target.landing() as rows:
                    rows.execute(f"insert into raw.{table} by name select * from read_parquet('{path}')")

    def build(self, *, with_data_tests: bool = False) -> None:
        """Build the tables of both as of the same instant; with data tests on Snowflake, which take most of the time."""
        as_of = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        for settings in (self.duckdb.settings, self.snowflake):
            options = ["--exclude-resource-type", "unit_test"]
            if settings is self.duckdb.settings or not with_data_tests:
                options = ["--resource-type", "seed", "--resource-type", "model"]
            with pytest.MonkeyPatch.context() as patch:
                # A folder of its own, or the parse for Snowflake throws away that for DuckDB, which other tests use too.
                if settings is self.snowflake:
                    patch.setenv("DBT_TARGET_PATH", str(self._folder / "target"))
                patch.setenv("DBT_WRITE_JSON", "false")
                patch.setenv("DBT_LOG_LEVEL_FILE", "none")
                run_dbt(settings, "build", *options, "--vars", f"{{as_of: '{as_of}'}}", quiet=True)

    def check_equality(self) -> None:
        """Fail with rows that only one of the two has. All tables that DuckDB has are compared, with all columns."""
        found: list[str] = []
        with connect(self.duckdb.settings) as duckdb, connect(self.snowflake) as snowflake:
            tables = duckdb.execute(
                "select table_schema || '.' || table_name, list(column_name order by ordinal_position) "
                "from information_schema.columns where table_schema in ('seeds', 'staging', 'intermediate', 'marts') "
                "group by 1 order by 1"
            ).rows
            assert len(tables) > 70
            for table, columns in tables:
                query = f"select {', '.join(columns)} from {table}"
                ours, theirs = (
                    Counter(tuple(map(as_text, row)) for row in warehouse.execute(query).rows)
                    for warehouse in (duckdb, snowflake)
                )
                rows = [f"only on DuckDB: {row}" for row in ours - theirs]
                rows += [f"only on Snowflake: {row}" for row in theirs - ours]
                if rows:
                    found += [f"{table} {columns}: {len(rows)} rows differ", *rows[:2], *rows[-2:]]
        if found:
            pytest.fail("\n".join(found), pytrace=False)

    def count(self, table: str) -> int:
        return int(self.duckdb.query(f"select count(*) from {table}")[0][0])


@pytest.fixture
def pair(
    standin: Standin, account_database: str, project_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Pair:
    """Two empty warehouses of one copy of this project."""
    for name, value in standin.environment(account_database).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("METERING_TARGET", "standin")
    monkeypatch.setenv("METERING_STATE_DIR", str(tmp_path / "state"))
    snowflake = replace(read_settings(), project=project_copy)
    duckdb = Settings(database=tmp_path / "warehouse" / "metering.duckdb", target="ci", project=project_copy)
    return Pair(duckdb, snowflake, tmp_path)


def test_demo_data_with_late_copies_and_changed_seeds(pair: Pair, project_copy: Path, tmp_path: Path) -> None:
    """Two builds: the second has copies and new events of old hours, and rules that changed since the first."""
    data = write_demo_data(tmp_path / "demo", events=EVENTS)
    pair.duckdb.land(data.september_events, data.cloud_events, data.sessions)
    pair.duckdb.land_events(AWKWARD_EVENTS)
    billed = tmp_path / "billed.csv"
    billed.write_text(BILLED_ELSEWHERE)
    with connect(pair.duckdb.settings) as connection:
        land_independent_totals(connection, data.independent_totals, progress=lambda _: None)
        land_shadow_billing(connection, billed, progress=lambda _: None)
    pair.copy_raw_rows()
    pair.build()
    pair.check_equality()
    assert pair.count("marts.fct_rated_lines") > 100
    assert pair.count("marts.fct_shadow_billing where classification = 'duplicates'") == 1

    pair.duckdb.land(data.october_events)
    pair.duckdb.land_events([*AWKWARD_EVENTS[:4], llm_request("microseconds", p_context_tokens=3), *CORRECTIONS])
    pair.copy_raw_rows()
    change_seed(
        project_copy,
        "catalog/event_types.csv",
        lambda rows: [
            row | {"late_events": "review"} if row["event_type"] == "assistant_session" else row for row in rows
        ],
    )
    change_seed(
        project_copy,
        "policy/late_event_reviews.csv",
        lambda _: [
            {"idempotency_key": key, "decision": decision, "decided_by": "x", "decided_on": "2026-11-20", "reason": "y"}
            for key, decision in (("quote", "accept"), ("digits", "reject"))
        ],
    )
    change_seed(
        project_copy,
        "accounts/subscriptions.csv",
        lambda rows: [row | {"time_zone": "Asia/Kolkata"} if row["customer_id"] == "cus_003" else row for row in rows],
    )
    change_seed(
        project_copy,
        "pricing/charges.csv",
        lambda rows: [
            {name: value.replace("2026-10-15 00:00:00", "2026-10-15 10:07:33") for name, value in row.items()}
            for row in rows
        ],
    )
    change_seed(
        project_copy,
        "catalog/event_properties.csv",
        lambda rows: [row | {"maximum": "3000"} if row["property_name"] == "context_tokens" else row for row in rows],
    )
    pair.build()
    pair.check_equality()
    assert pair.duckdb.outcome_counts()["rejected"] > 20
    assert pair.count("marts.fct_event_conflicts") > 0
    statuses = pair.duckdb.query("select distinct status from marts.fct_event_corrections order by 1")
    assert statuses == [("applied",), ("customer_differs",), ("superseded",), ("waiting_for_event",)]
    assert pair.duckdb.query("select distinct status from marts.fct_late_events order by 1") == [
        ("accepted",),
        ("rejected",),
        ("waiting",),
    ]


def test_price_book_of_the_conformance_cases(pair: Pair, project_copy: Path) -> None:
    """Every charge model, commitment, discount and credit, of subscriptions in many time zones."""
    write_seeds(project_copy, build_seeds())
    pair.duckdb.land_events(build_events())
    pair.copy_raw_rows()
    pair.build()
    pair.check_equality()
    assert pair.count("marts.fct_rated_lines") > 200


@pytest.mark.skipif(OWN_EVENTS not in os.environ, reason=f"{OWN_EVENTS} names no file of events")
def test_events_of_your_own(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """The events of the file that the environment variable names, in a format that metering load reads."""
    pair.duckdb.land(Path(os.environ[OWN_EVENTS]).absolute())
    pair.copy_raw_rows()
    pair.build(with_data_tests=True)
    pair.check_equality()
    with capsys.disabled():
        print(f"\n{os.environ[OWN_EVENTS]}: {pair.duckdb.outcome_counts()}, the same on both")
        for table in ("fct_usage_hourly", "fct_usage_by_service_period", "fct_rated_lines", "fct_unbilled_usage"):
            print(f"  {table}: {pair.count(f'marts.{table}'):,} rows equal to the last digit")
