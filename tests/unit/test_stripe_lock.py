"""The lock of a Stripe account, between two sessions of a DuckDB database that stands for one that many may open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import duckdb
import pytest

from orchestration.lib.project import PROJECT_DIR
from orchestration.lib.stripe_lock import SyncLockError, hold_sync_lock
from orchestration.lib.warehouse import DuckDBWarehouse, raw_and_ops_table_statements

ACCOUNT = "acct_1:test"


class Shared(DuckDBWarehouse):
    """As Snowflake in that other processes may be at it."""

    is_of_one_process = False


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as opened:
        for statement in raw_and_ops_table_statements(PROJECT_DIR):
            opened.execute(statement)
        yield opened


@pytest.fixture
def first(connection: duckdb.DuckDBPyConnection) -> Shared:
    return Shared(connection.cursor())


@pytest.fixture
def second(connection: duckdb.DuckDBPyConnection) -> Shared:
    return Shared(connection.cursor())


def test_of_two_syncs_one_works_and_the_other_says_so(first: Shared, second: Shared) -> None:
    with hold_sync_lock(first, ACCOUNT) as lock:
        with (
            pytest.raises(SyncLockError, match=r"Another sync of Stripe account acct_1:test is at work.*--take-over"),
            hold_sync_lock(second, ACCOUNT, process_id="another"),
        ):
            pass
        with hold_sync_lock(second, "acct_2", process_id="another"), first.transaction():
            lock.renew()
    with hold_sync_lock(second, ACCOUNT, process_id="another"):
        pass


def test_who_was_taken_over_from_stops_at_its_next_step(first: Shared, second: Shared) -> None:
    with hold_sync_lock(first, ACCOUNT) as lock:
        with hold_sync_lock(second, ACCOUNT, take_over=True, process_id="another") as other:
            with pytest.raises(SyncLockError, match="has taken over"), first.transaction():
                lock.renew()
            lock.release()
            with second.transaction():
                other.renew()
        with pytest.raises(SyncLockError, match="has taken over"), first.transaction():
            lock.renew()


@pytest.mark.parametrize(("minutes", "is_free"), [(59, False), (61, True)])
def test_a_lock_without_a_sign_of_life_is_free_after_an_hour(
    first: Shared, second: Shared, minutes: int, is_free: bool
) -> None:
    with hold_sync_lock(first, ACCOUNT):
        last_heard_of = datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=minutes)
        first.execute(
            "update ops.stripe_sync_lock set renewed_at = ? where stripe_account = ?", [last_heard_of, ACCOUNT]
        )
        if is_free:
            with hold_sync_lock(second, ACCOUNT, process_id="another"):
                return
        with pytest.raises(SyncLockError), hold_sync_lock(second, ACCOUNT, process_id="another"):
            pass


def test_what_another_process_left_in_a_duckdb_file_is_free(connection: duckdb.DuckDBPyConnection) -> None:
    warehouse = DuckDBWarehouse(connection)
    with hold_sync_lock(warehouse, ACCOUNT, process_id="dead"), hold_sync_lock(warehouse, ACCOUNT):
        pass
    # Of the same process it is held: two threads.
    with hold_sync_lock(warehouse, ACCOUNT), pytest.raises(SyncLockError), hold_sync_lock(warehouse, ACCOUNT):
        pass


def test_two_that_ask_at_the_same_moment(first: Shared, second: Shared) -> None:
    with first.transaction():
        first.execute("update ops.stripe_sync_lock set renewed_at = current_timestamp")
        with pytest.raises(SyncLockError, match="begins at this moment"), hold_sync_lock(second, ACCOUNT):
            pass


def test_a_user_without_a_name_holds_it_by_number(first: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", no_name)
    with hold_sync_lock(first, ACCOUNT):
        ((holder,),) = first.execute(
            "select holder from ops.stripe_sync_lock where stripe_account = ?", [ACCOUNT]
        ).fetchall()
    assert holder.startswith(f"user {os.getuid()} on ")


def test_a_warehouse_without_the_lock_is_named(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("drop table ops.stripe_sync_lock")
    with (
        pytest.raises(SyncLockError, match="create_raw_and_ops_tables"),
        hold_sync_lock(DuckDBWarehouse(connection), ACCOUNT),
    ):
        pass
