"""One sync of a Stripe account at a time: who syncs holds the account's row in `ops.stripe_sync_lock`.

The row is held over many transactions, since the sync log is committed around every call. So a process that dies leaves
it held. On DuckDB, which one process opens at a time, another process's row is known to be left over; on Snowflake it
is taken over an hour after its last sign of life, or when somebody says so. Whoever had it and goes on all the same
finds that out with the next intent, before the call.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from orchestration.lib.project import MeteringError
from orchestration.lib.warehouse import BusyError, MissingObjectError, Warehouse, WarehouseError, append_rows

# Of this process; ids of processes are used again.
PROCESS_ID = str(uuid.uuid4())

# Longer than any call takes with all its retries.
LEFT_OVER = timedelta(hours=1)

# The row that everybody updates first: two that ask at once are answered one after the other.
GATE = "every account"


class SyncLockError(MeteringError):
    """Another sync of the account is at work, or has taken over from this one."""


@dataclass(frozen=True)
class SyncLock:
    """The lock of one account, held by one sync.

    Attributes:
        warehouse: where the lock is.
        stripe_account: the account's name in the log.
        process_id: of the process that holds it.
        holder_id: of the sync that holds it.
    """

    warehouse: Warehouse
    stripe_account: str
    process_id: str = PROCESS_ID
    holder_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def take(self, *, take_over: bool) -> None:
        """Hold the lock from now on.

        Raises:
            SyncLockError: somebody else holds it, and may be alive; with `take_over` that is no hindrance.
        """
        now = _now()
        try:
            with self.warehouse.transaction():
                self._update("stripe_account = ?", [GATE], renewed_at=now)
                held = self._read()
                if held is not None and not take_over:
                    self._require_left_over(*held, now)
                row = {
                    "holder_id": self.holder_id,
                    "process_id": self.process_id,
                    "holder": f"{_user()} on {socket.gethostname()}, process {os.getpid()}",
                    "taken_at": now,
                    "renewed_at": now,
                }
                if held is None:
                    append_rows(
                        self.warehouse, "ops.stripe_sync_lock", [{"stripe_account": self.stripe_account, **row}]
                    )
                else:
                    self._update("stripe_account = ?", [self.stripe_account], **row)
        except BusyError as error:
            raise SyncLockError(
                f"Another sync of Stripe account {self.stripe_account} begins at this moment. Nothing was sent."
            ) from error
        except MissingObjectError as error:
            raise SyncLockError(
                f"The warehouse lacks ops.stripe_sync_lock ({str(error).splitlines()[0]}), so nothing was sent. Run "
                "`dbt run-operation create_raw_and_ops_tables`; on Snowflake also docs/snowflake/tables.sql."
            ) from error

    def renew(self) -> None:
        """Give a sign of life, inside the transaction of what is to be done next.

        Raises:
            SyncLockError: somebody else has taken over, so nothing may be done.
        """
        # The update comes first, so that a take-over is either over and seen or has to wait.
        try:
            self._update("stripe_account = ?", [self.stripe_account], renewed_at=_now())
        except BusyError as error:
            raise self._lost() from error
        held = self._read()
        if held is None or held[0] != self.holder_id:
            raise self._lost()

    def release(self) -> None:
        """Let the next one have it."""
        with self.warehouse.transaction():
            self._update("stripe_account = ? and holder_id = ?", [self.stripe_account, self.holder_id], holder_id=None)

    def _lost(self) -> SyncLockError:
        return SyncLockError(
            f"Another sync of Stripe account {self.stripe_account} has taken over, so this one stopped. What it had "
            "begun is in the sync log."
        )

    def _read(self) -> tuple[str | None, str, str, datetime, datetime] | None:
        row = self.warehouse.execute(
            "select holder_id, process_id, holder, taken_at, renewed_at from ops.stripe_sync_lock "
            "where stripe_account = ?",
            [self.stripe_account],
        ).fetchone()
        return None if row is None else (row[0], row[1], row[2], row[3], row[4])

    def _require_left_over(
        self,
        holder_id: str | None,
        process_id: str,
        holder: str,
        taken_at: datetime,
        renewed_at: datetime,
        now: datetime,
    ) -> None:
        is_dead = self.warehouse.is_of_one_process and process_id != self.process_id
        if holder_id is None or is_dead or renewed_at < now - LEFT_OVER:
            return
        raise SyncLockError(
            f"Another sync of Stripe account {self.stripe_account} is at work, since {taken_at:%Y-%m-%d %H:%M:%S} UTC "
            f"({holder}), last heard of at {renewed_at:%H:%M:%S} UTC. Nothing was sent. Wait for it to end. If it is "
            "dead, run metering sync --take-over; an hour after it was last heard of, that happens by itself."
        )

    def _update(self, condition: str, of: list[str], **columns: object) -> None:
        assignments = ", ".join(f"{column} = ?" for column in columns)
        self.warehouse.execute(
            f"update ops.stripe_sync_lock set {assignments} where {condition}", [*columns.values(), *of]
        )


@contextlib.contextmanager
def hold_sync_lock(
    warehouse: Warehouse, stripe_account: str, *, take_over: bool = False, process_id: str = PROCESS_ID
) -> Iterator[SyncLock]:
    """The account's lock, for the length of the `with` block.

    Args:
        warehouse: an open warehouse, without a transaction.
        stripe_account: the account's name in the log.
        take_over: whether to take it from somebody who may be alive.
        process_id: of this process, where a test plays several.

    Raises:
        SyncLockError: on entering, when somebody else holds it.
    """
    lock = SyncLock(warehouse, stripe_account, process_id)
    lock.take(take_over=take_over)
    try:
        yield lock
    finally:
        # Where the warehouse cannot be reached any more, it is left over.
        with contextlib.suppress(WarehouseError):
            lock.release()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container whose user id has no name.
        return f"user {os.getuid()}"


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
