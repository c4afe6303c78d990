"""The state of the local Stripe server: a SQLite file with account, objects and idempotency records."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LocalStripeError

SCHEMA_VERSION = 1
SCHEMA = """
    create table account (id text not null);

    create table objects (
        sequence integer primary key,
        kind text not null,
        id text not null unique,
        customer text,
        invoice text,
        status text,
        created integer not null,
        body text not null
    );
    create index objects_by_kind on objects (kind, sequence);
    create index objects_by_customer on objects (kind, customer, sequence);
    create index objects_by_invoice on objects (kind, invoice, sequence);

    create table idempotency_records (
        idempotency_key text primary key,
        path text not null,
        fingerprint text not null,
        status integer not null,
        body text not null,
        request_id text not null,
        created integer not null
    );
"""
# Beside the objects, so that state files from before meters stay good.
METER_EVENTS = """
    create table if not exists meter_events (
        identifier text not null,
        event_name text not null,
        customer text not null,
        value integer not null,
        timestamp integer not null,
        received integer not null,
        error_code text
    )
"""
COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


@dataclass(frozen=True)
class StoredObject:
    """A customer, product, invoice or invoice item: the columns to change or filter on, and the rest as `body`.

    `created` is in seconds since 1970 UTC. `customer`, `invoice`, `status` are None where the kind has none.
    """

    kind: str
    id: str
    customer: str | None
    invoice: str | None
    status: str | None
    created: int
    body: dict[str, Any]


@dataclass(frozen=True)
class IdempotencyRecord:
    """The first answer to an idempotency key; `fingerprint` hashes the parameters, `created` is seconds."""

    idempotency_key: str
    path: str
    fingerprint: str
    status: int
    body: str
    request_id: str
    created: int


@dataclass(frozen=True)
class MeterEvent:
    """An event that was taken; `error_code` says why it does not count. Times in seconds since 1970 UTC."""

    identifier: str
    event_name: str
    customer: str
    value: int
    timestamp: int
    received: int
    error_code: str | None


class Store:
    """Reads and writes the state file. A new file is a new account with a random id.

    Several processes may share one file: writes take SQLite's lock. The path `:memory:` is a state that
    goes with the process.

    Raises:
        LocalStripeError: the file is not a state file of this version.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The server's thread uses what the starting thread opened; only one of them works at a time.
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            self._connection.execute("pragma journal_mode = wal")
            with self.transaction():
                self._create_or_check(path)
                self._connection.execute(METER_EVENTS)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise LocalStripeError(
                f"{path} cannot be used as the local Stripe server's state ({error}). "
                "Move it away for a new, empty account, or name another file."
            ) from error
        except LocalStripeError:
            self._connection.close()
            raise

    def _create_or_check(self, path: Path) -> None:
        (version,) = self._connection.execute("pragma user_version").fetchone()
        tables = self._connection.execute("select count(*) from sqlite_master").fetchone()[0]
        if version == 0 and tables == 0:
            for statement in SCHEMA.split(";"):
                self._connection.execute(statement)
            account_id = f"acct_local_{secrets.token_hex(8)}"
            self._connection.execute("insert into account values (?)", (account_id,))
            self._connection.execute(f"pragma user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise LocalStripeError(
                f"{path} is not a state file of this local Stripe server (version {version}, "
                f"expected {SCHEMA_VERSION}). Move it away for a new, empty account, or name another file."
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside becomes durable together, or not at all when an exception leaves the block."""
        self._connection.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._connection.execute("rollback")
            raise
        self._connection.execute("commit")

    def account_id(self) -> str:
        """The id of the account that this file is, `acct_local_<hex>`."""
        return str(self._connection.execute("select id from account").fetchone()[0])

    def insert(self, stored: StoredObject) -> None:
        """Add a new object; the order of insertion is the order of lists, reversed."""
        self._connection.execute(
            "insert into objects (kind, id, customer, invoice, status, created, body) values (?, ?, ?, ?, ?, ?, ?)",
            (
                stored.kind,
                stored.id,
                stored.customer,
                stored.invoice,
                stored.status,
                stored.created,
                json.dumps(stored.body),
            ),
        )

    def get(self, kind: str, object_id: str) -> StoredObject | None:
        """The object of this kind and id, or None."""
        rows = self._select("kind = ? and id = ?", (kind, object_id), "limit 1")
        return rows[0] if rows else None

    def all(self, kind: str) -> list[StoredObject]:
        """All objects of a kind, oldest first."""
        return self._select("kind = ?", (kind,), "order by sequence")

    def page(
        self,
        kind: str,
        *,
        equal: Mapping[str, str],
        pending: bool | None,
        created: Mapping[str, int],
        after: str | None,
        limit: int,
    ) -> tuple[list[StoredObject], bool]:
        """One page of a list, newest first, and whether more follow.

        Args:
            equal: wanted values of the columns customer, invoice, status.
            pending: True for objects without an invoice, False for those with one, None for all.
            created: bounds in seconds by gt, gte, lt, lte.
            after: the id of the last object of the page before.
            limit: size of the page.
        """
        conditions, values = ["kind = ?"], [kind]
        for column in ("customer", "invoice", "status"):
            if column in equal:
                conditions.append(f"{column} = ?")
                values.append(equal[column])
        if pending is not None:
            conditions.append("invoice is null" if pending else "invoice is not null")
        for member, seconds in created.items():
            conditions.append(f"created {COMPARISONS[member]} {seconds:d}")
        if after is not None:
            conditions.append("sequence < (select sequence from objects where id = ?)")
            values.append(after)
        rows = self._select(" and ".join(conditions), tuple(values), f"order by sequence desc limit {limit + 1:d}")
        return rows[:limit], len(rows) > limit

    def invoice_items(self, invoice_id: str) -> list[StoredObject]:
        """The items attached to an invoice, oldest first."""
        return self._select("kind = 'invoiceitem' and invoice = ?", (invoice_id,), "order by sequence")

    def pending_items(self, customer_id: str, currency: str) -> list[StoredObject]:
        """The customer's items in this currency that are on no invoice, oldest first."""
        rows = self._select(
            "kind = 'invoiceitem' and customer = ? and invoice is null", (customer_id,), "order by sequence"
        )
        return [row for row in rows if row.body["currency"] == currency]

    def attach_item(self, item_id: str, invoice_id: str) -> None:
        """Put a pending invoice item on an invoice."""
        self._connection.execute("update objects set invoice = ? where id = ?", (invoice_id, item_id))

    def set_status(self, object_id: str, status: str) -> None:
        """Change an object's status."""
        self._connection.execute("update objects set status = ? where id = ?", (status, object_id))

    def delete(self, object_id: str) -> None:
        """Remove an object."""
        self._connection.execute("delete from objects where id = ?", (object_id,))

    def insert_meter_event(self, event: MeterEvent) -> None:
        """Keep an event that was taken."""
        self._connection.execute(
            "insert into meter_events values (?, ?, ?, ?, ?, ?, ?)",
            (
                event.identifier,
                event.event_name,
                event.customer,
                event.value,
                event.timestamp,
                event.received,
                event.error_code,
            ),
        )

    def find_meter_event(self, identifier: str, *, not_before: int) -> MeterEvent | None:
        """The event with an identifier that was received at or after `not_before` (seconds), or None."""
        found = self._select_events("identifier = ? and received >= ?", (identifier, not_before))
        return found[0] if found else None

    def meter_events(self, event_name: str, customer: str, start: int, end: int) -> list[MeterEvent]:
        """A customer's events of a meter from `start` to before `end` (seconds), also those that do not count."""
        return self._select_events(
            "event_name = ? and customer = ? and timestamp >= ? and timestamp < ?", (event_name, customer, start, end)
        )

    def all_meter_events(self) -> list[MeterEvent]:
        """Every event, in the order in which they were received."""
        return self._select_events("true", ())

    def _select_events(self, condition: str, values: tuple[str | int, ...]) -> list[MeterEvent]:
        rows = self._connection.execute(
            "select identifier, event_name, customer, value, timestamp, received, error_code from meter_events "
            f"where {condition} order by rowid",
            values,
        ).fetchall()
        return [MeterEvent(*row) for row in rows]

    def find_record(self, idempotency_key: str, *, not_before: int) -> IdempotencyRecord | None:
        """The record of a key made at or after `not_before` (seconds), or None."""
        row = self._connection.execute(
            "select idempotency_key, path, fingerprint, status, body, request_id, created "
            "from idempotency_records where idempotency_key = ? and created >= ?",
            (idempotency_key, not_before),
        ).fetchone()
        return None if row is None else IdempotencyRecord(*row)

    def save_record(self, record: IdempotencyRecord, *, not_before: int) -> None:
        """Keep the answer to a key, and forget the records made before `not_before` (seconds)."""
        self._connection.execute("delete from idempotency_records where created < ?", (not_before,))
        self._connection.execute(
            "insert into idempotency_records values (?, ?, ?, ?, ?, ?, ?)",
            (
                record.idempotency_key,
                record.path,
                record.fingerprint,
                record.status,
                record.body,
                record.request_id,
                record.created,
            ),
        )

    def _select(self, condition: str, values: tuple[str, ...], tail: str) -> list[StoredObject]:
        rows = self._connection.execute(
            f"select kind, id, customer, invoice, status, created, body from objects where {condition} {tail}",
            values,
        ).fetchall()
        return [
            StoredObject(kind, object_id, customer, invoice, status, created, json.loads(body))
            for kind, object_id, customer, invoice, status, created, body in rows
        ]
