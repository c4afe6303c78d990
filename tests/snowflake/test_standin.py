"""The stand-in behaves as Snowflake does where its shims say so: each test fails without one of them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import snowflake.connector
from snowflake.connector.errors import ProgrammingError

from tests.snowflake.standin import Standin

DIGITS_38 = 12345678901234567890123456789012345678


class Session:
    """A connection of Snowflake's own connector."""

    def __init__(self, connection: snowflake.connector.SnowflakeConnection) -> None:
        self._connection = connection

    def rows(self, sql: str) -> list[Any]:
        return self._connection.cursor().execute(sql).fetchall()


@pytest.fixture
def session(standin: Standin, account_database: str) -> Iterator[Session]:
    with snowflake.connector.connect(**standin.connection_parameters(account_database)) as connection:
        yield Session(connection)


def test_sums_of_money_are_exact(session: Session) -> None:
    session.rows("create table amounts (amount number(38, 21))")
    session.rows("insert into amounts values (12345678901234567.000000000000000000001), (0.1), (0.2)")
    assert session.rows("select sum(amount) from amounts") == [(Decimal("12345678901234567.300000000000000000001"),)]


def test_whole_numbers_have_38_digits(session: Session) -> None:
    session.rows(f"create table numbers as select cast('{DIGITS_38}' as number(38, 0)) as n")
    assert session.rows("select n, n - 1 from numbers") == [(DIGITS_38, DIGITS_38 - 1)]
    with pytest.raises(ProgrammingError):
        session.rows("select n * 10 from numbers")


def test_hexadecimal_digits_are_numbers(session: Session) -> None:
    assert session.rows("select to_number('900150983CD24FB', 'XXXXXXXXXXXXXXX')") == [(0x900150983CD24FB,)]


def test_a_division_without_remainder_is_exact(session: Session) -> None:
    sql = f"select (n - mod(n, d)) / d from (select {DIGITS_38} as n, 7 as d)"
    assert session.rows(sql) == [(DIGITS_38 // 7,)]


def test_null_timestamps_arrive_as_null(session: Session) -> None:
    session.rows("create table times (happened_at timestamp_ntz)")
    session.rows("insert into times values (null), ('2026-03-01 10:00:00.123456')")
    assert session.rows("select happened_at from times order by happened_at nulls first") == [
        (None,),
        (datetime(2026, 3, 1, 10, 0, 0, 123456),),
    ]


def test_temporary_tables_have_qualified_names(session: Session) -> None:
    session.rows("create or replace temporary table main.scratch as select 1 as n")
    assert session.rows("select n from main.scratch") == [(1,)]


def test_merge_counts_and_runs_in_a_transaction(session: Session) -> None:
    session.rows("create table target as select 1 as id, 'old' as value")
    session.rows("create table source as select 1 as id, 'new' as value union all select 2, 'new'")
    merge = """
        merge into target using source on target.id = source.id
        when matched then update set target.value = source.value
        when not matched then insert (id, value) values (id, value)
    """
    session.rows("begin")
    assert session.rows(merge) == [(1, 1)]
    session.rows("rollback")
    assert session.rows("select * from target") == [(1, "old")]
    session.rows(merge)
    assert session.rows("select * from target order by id") == [(1, "new"), (2, "new")]


def test_an_error_in_a_transaction_does_not_block_the_session(session: Session) -> None:
    session.rows("create table kept as select 1 as n")
    session.rows("begin")
    with pytest.raises(ProgrammingError, match="does not exist"):
        session.rows("select * from nowhere")
    session.rows("commit")
    assert session.rows("select n from kept") == [(1,)]


def test_statements_about_the_account_have_no_effect(session: Session) -> None:
    session.rows("alter session set query_tag = 'metering'")
    session.rows("grant select on all tables in schema main to role reporter")
    assert session.rows("/* dbt */ show parameters like 'query_tag' in session")[0][:2] == ("QUERY_TAG", "")
    assert session.rows("show grants on table kept") == []


def test_a_folder_keeps_databases_from_one_server_to_the_next(tmp_path: Path) -> None:
    for statement in ("create table kept as select 1 as n", "select n from kept"):
        with (
            Standin(tmp_path / "account") as server,
            snowflake.connector.connect(**server.connection_parameters("METERING")) as connection,
        ):
            rows = connection.cursor().execute(statement).fetchall()
    assert rows == [(1,)]
