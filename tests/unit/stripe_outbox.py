"""An outbox in a DuckDB file, faults on the way to Stripe, and what Stripe then has: for the tests of the sync."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import requests
import stripe

from orchestration.lib.stripe_readback import list_lines
from orchestration.lib.stripe_settings import InvoiceSettings
from orchestration.lib.stripe_sync import sync_invoice_items
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_target import StripeTarget, stripe_client
from orchestration.lib.warehouse import DuckDBWarehouse
from orchestration.local_stripe import LocalStripeServer

SECRET = "sk_test_" + "notARealKey123"
Answer = tuple[bytes, int, Any]
HttpFault = Callable[[str, str, str, Callable[[], Answer]], Answer]


class Crash(BaseException):
    """The process dies: nothing in the sync may catch this."""


class FaultyHttp(stripe.RequestsClient):
    """Sends through a function that may fail before or after the real request.

    The SDK's own clients answer in bytes too, against their base class's types.
    """

    def __init__(self, fault: HttpFault) -> None:
        session = requests.Session()
        session.trust_env = False
        super().__init__(session=session)
        self._fault = fault

    def request(self, method: str, url: str, headers: Any, post_data: Any = None) -> Answer:  # type: ignore[override]
        def send() -> Answer:
            return super(FaultyHttp, self).request(method, url, headers, post_data)

        return self._fault(method, url, post_data or "", send)


class Warehouse:
    """A DuckDB file with the outbox and the sync log."""

    def __init__(self, path: Path) -> None:
        self.connection = duckdb.connect(str(path))
        self.opened = DuckDBWarehouse(self.connection)
        self.connection.execute(
            """
            create schema marts;
            create schema ops;
            create table marts.stripe_invoice_items (
                line_id varchar, invoice_id varchar, run_id varchar, customer_id varchar, customer_name varchar,
                stripe_customer_id varchar, billing_period varchar, service_period_start_at timestamp,
                service_period_end_at timestamp, currency varchar, amount_minor bigint, description varchar,
                subscription_id varchar, metric_code varchar, charge_code varchar, price_version integer,
                hold_reason varchar, quantity decimal(38, 9), unit_amount_minor decimal(26, 12)
            );
            create table ops.stripe_sync_log (
                attempt_id varchar, logged_at timestamp, stripe_account varchar, entity varchar,
                entity_key varchar, step varchar, idempotency_key varchar, stripe_object_id varchar,
                request_id varchar, http_status integer, amount_minor bigint, currency varchar, customer_id varchar,
                billing_period varchar, error_code varchar, error_body varchar
            );
            create table ops.stripe_sync_lock (
                stripe_account varchar, holder_id varchar, process_id varchar, holder varchar, taken_at timestamp,
                renewed_at timestamp
            );
            insert into ops.stripe_sync_lock (stripe_account) values ('every account');
            """
        )

    def add(self, line_id: str, **columns: Any) -> None:
        row = {
            "line_id": line_id,
            "invoice_id": "inv_1",
            "run_id": "2026-10.1",
            "customer_id": "customer_1",
            "customer_name": "Customer One",
            "stripe_customer_id": None,
            "billing_period": "2026-10",
            "service_period_start_at": datetime(2026, 10, 1),
            "service_period_end_at": datetime(2026, 11, 1),
            "currency": "USD",
            "amount_minor": 100,
            "description": f"Line {line_id}",
            "subscription_id": "sub_1",
            "metric_code": "api_calls",
            "charge_code": "calls",
            "price_version": 3,
            "hold_reason": None,
        } | columns
        self.connection.execute(
            f"insert into marts.stripe_invoice_items ({', '.join(row)}) values ({', '.join('?' for _ in row)})",
            list(row.values()),
        )

    def set(self, line_id: str, assignment: str) -> None:
        self.connection.execute(f"update marts.stripe_invoice_items set {assignment} where line_id = ?", [line_id])

    def log(self) -> list[tuple[Any, ...]]:
        return self.connection.execute("select * from ops.stripe_sync_log order by rowid").fetchall()

    def steps(self, entity: str, entity_key: str) -> list[str]:
        rows = self.connection.execute(
            "select step from ops.stripe_sync_log where entity = ? and entity_key = ? order by rowid",
            [entity, entity_key],
        ).fetchall()
        return [row[0] for row in rows]


def target_of(server: LocalStripeServer, fault: HttpFault | None = None, retries: int = 0) -> StripeTarget:
    client = stripe_client(SECRET, server.url)
    account_id = client.v1.accounts.retrieve_current().id
    if fault is not None:
        client = stripe.StripeClient(
            SECRET,
            base_addresses={"api": server.url, "meter_events": server.url},
            max_network_retries=retries,
            http_client=FaultyHttp(fault),
        )
    return StripeTarget(client, account_id, "local", "local Stripe server")


def sync(
    warehouse: Warehouse,
    target: StripeTarget,
    billing_period: str | None = None,
    settings: InvoiceSettings | None = None,
) -> SyncReport:
    return sync_invoice_items(
        warehouse.opened, target, billing_period=billing_period, settings=settings, progress=lambda message: None
    )


def count_objects(target: StripeTarget) -> tuple[int, int, int]:
    """Customers, invoices and invoice items in Stripe."""
    services = target.client.v1
    return (
        len(list(services.customers.list({"limit": 100}).auto_paging_iter())),
        len(list(services.invoices.list({"limit": 100}).auto_paging_iter())),
        len(list(services.invoice_items.list({"limit": 100}).auto_paging_iter())),
    )


def items_by_line(target: StripeTarget) -> dict[str, stripe.InvoiceLineItem]:
    invoices = target.client.v1.invoices.list({"limit": 100}).auto_paging_iter()
    lines = [line for invoice in invoices for line in list_lines(target.client, invoice.id)]
    return {line.metadata["metering_line_id"]: line for line in lines}


def forget_idempotency(state: Path) -> None:
    """What a day does to Stripe's idempotency records."""
    with closing(sqlite3.connect(state)) as connection, connection:
        assert connection.execute("delete from idempotency_records").rowcount > 0


def set_invoice_status(state: Path, status: str) -> None:
    with closing(sqlite3.connect(state)) as connection, connection:
        connection.execute("update objects set status = ? where kind = 'invoice'", (status,))


def delete_drafts(state: Path) -> None:
    """What a person may do to drafts in Stripe: they are gone, with their items."""
    with closing(sqlite3.connect(state)) as connection, connection:
        drafts = "select id from objects where kind = 'invoice' and status = 'draft'"
        connection.execute(f"delete from objects where invoice in ({drafts})")
        connection.execute(f"delete from objects where id in ({drafts})")


def posts(path: str, containing: str = "") -> Callable[[str, str, str], bool]:
    """Whether a request is a POST to the path whose form contains a text."""

    def matches(method: str, url: str, form: str) -> bool:
        return method == "post" and url.endswith(path) and containing in form

    return matches


def crash_before(matches: Callable[[str, str, str], bool]) -> HttpFault:
    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if matches(method, url, form):
            raise Crash
        return send()

    return fault


def crash_after(matches: Callable[[str, str, str], bool]) -> HttpFault:
    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        answer = send()
        if matches(method, url, form):
            raise Crash
        return answer

    return fault


def answer_with(matches: Callable[[str, str, str], bool], status: int, body: str = "{}") -> HttpFault:
    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if matches(method, url, form):
            return body.encode(), status, {"Request-Id": "req_fault"}
        return send()

    return fault


def pass_on(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
    """No fault."""
    return send()


def finalized_before_lines(state: Path, then: HttpFault = pass_on) -> HttpFault:
    """A person finalises the drafts between the sync's look at one and its call."""

    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if url.endswith("/add_lines"):
            set_invoice_status(state, "open")
        return then(method, url, form, send)

    return fault


def three_invoices(warehouse: Warehouse) -> None:
    warehouse.add("l1", amount_minor=1050)
    warehouse.add("l2", amount_minor=-50)
    warehouse.add("l3", invoice_id="inv_2", billing_period="2026-11", amount_minor=7)
    warehouse.add(
        "l4",
        invoice_id="inv_3",
        customer_id="customer_2",
        customer_name=None,
        currency="JPY",
        amount_minor=900,
    )


# Creating
