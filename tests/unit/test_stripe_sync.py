"""The sync from the outbox to Stripe: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

import dataclasses
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
import requests
import stripe

from orchestration.lib.stripe_sync import (
    InvoiceSettings,
    StripeSyncError,
    SyncReport,
    batch_key,
    describe_plan,
    hold_unmapped,
    item_id_of,
    list_lines,
    plan_sync,
    read_back_invoices,
    read_invoice_settings,
    read_log,
    read_outbox,
    sync_invoice_items,
    with_backoff,
)
from orchestration.lib.stripe_target import (
    StripeTarget,
    StripeTargetError,
    open_stripe_target,
    redact_keys,
    stripe_client,
)
from orchestration.lib.warehouse import DuckDBWarehouse
from orchestration.local_stripe import Fault, LocalStripeServer
from orchestration.local_stripe.control import FaultKind

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


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    opened = Warehouse(tmp_path / "warehouse.duckdb")
    yield opened
    opened.connection.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "stripe.sqlite"


@pytest.fixture
def server(state: Path) -> Iterator[LocalStripeServer]:
    with LocalStripeServer(state) as running:
        yield running


@pytest.fixture
def target(server: LocalStripeServer) -> StripeTarget:
    return target_of(server)


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


def sync(warehouse: Warehouse, target: StripeTarget, billing_period: str | None = None) -> SyncReport:
    return sync_invoice_items(warehouse.opened, target, billing_period=billing_period, progress=lambda message: None)


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


def test_the_first_run_creates_everything(warehouse: Warehouse, target: StripeTarget) -> None:
    three_invoices(warehouse)
    report = sync(warehouse, target)
    assert report == SyncReport(target.account_id, created=4)
    assert report.is_clean
    assert count_objects(target) == (2, 3, 4)
    read = read_back_invoices(target)
    assert [(i.metering_invoice_id, i.currency, i.total_minor, i.item_count, i.line_ids) for i in read] == [
        ("inv_1", "usd", 1000, 2, ("l1", "l2")),
        ("inv_2", "usd", 7, 1, ("l3",)),
        ("inv_3", "jpy", 900, 1, ("l4",)),
    ]
    assert read[0].customer_id == read[1].customer_id != read[2].customer_id
    customer = target.client.v1.customers.retrieve(read[0].customer_id)
    assert customer.name == "Customer One"
    assert customer.metadata is not None
    assert customer.metadata.to_dict() == {"metering_customer_id": "customer_1"}
    invoice = target.client.v1.invoices.retrieve(read[0].stripe_invoice_id)
    assert (invoice.status, invoice.auto_advance) == ("draft", False)
    assert invoice.metadata is not None
    assert invoice.metadata.to_dict() == {
        "metering_invoice_id": "inv_1",
        "metering_invoice_part": "1",
        "metering_billing_period": "2026-10",
        "metering_run_id": "2026-10.1",
    }


def test_an_item_carries_its_line(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1", service_period_end_at=datetime(2026, 10, 31, 23, 0, 0, 500_000))
    warehouse.add("l2")
    sync(warehouse, target)
    item = items_by_line(target)["l2"]
    assert (item.amount, item.currency, item.description) == (100, "usd", "Line l2")
    # Stripe's end is inclusive: the last second of October, not the first of November.
    assert item.period.start == int(datetime(2026, 10, 1, tzinfo=UTC).timestamp())
    assert item.period.end == int(datetime(2026, 10, 31, 23, 59, 59, tzinfo=UTC).timestamp())
    part = items_by_line(target)["l1"]
    assert part.period.end == int(datetime(2026, 10, 31, 23, 0, 0, tzinfo=UTC).timestamp())
    assert item.metadata.to_dict() == {
        "metering_line_id": "l2",
        "metering_invoice_id": "inv_1",
        "metering_billing_period": "2026-10",
        "metering_run_id": "2026-10.1",
        "metering_subscription_id": "sub_1",
        "metering_metric_code": "api_calls",
        "metering_charge_code": "calls",
        "metering_price_version": "3",
    }


def test_a_line_shows_quantity_and_unit_price_where_they_make_its_amount(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    price = {"quantity": Decimal(4_000_000), "unit_amount_minor": Decimal("0.00000025"), "amount_minor": 1}
    warehouse.add("l1", **price)
    warehouse.add("l2", **price | {"amount_minor": 2})
    warehouse.add("l3", quantity=Decimal("2.5"), unit_amount_minor=Decimal(40), amount_minor=100)
    warehouse.add("l4", quantity=Decimal("-2.5"), unit_amount_minor=Decimal(40), amount_minor=-100)
    forms: list[str] = []

    def note(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        forms.append(form if url.endswith("/add_lines") else "")
        return send()

    assert sync(warehouse, target_of(server, note)) == SyncReport(target.account_id, created=4)
    lines = {line_id: line for line_id, line in items_by_line(target).items() if line.pricing is not None}
    assert {
        line_id: (line.amount, line.quantity_decimal, line.pricing and line.pricing.unit_amount_decimal)
        for line_id, line in lines.items()
    } == {
        "l1": (1, Decimal(4_000_000), Decimal("0.00000025")),
        "l2": (2, Decimal(1), Decimal(2)),
        "l3": (100, Decimal("2.5"), Decimal(40)),
        "l4": (-100, Decimal(1), Decimal(-100)),
    }
    # The SDK itself would write 2.5E-7.
    assert "[unit_amount_decimal]=0.00000025" in "".join(forms).replace("%5B", "[").replace("%5D", "]")
    (product,) = target.client.v1.products.list().data
    assert product.name == "api_calls"
    assert warehouse.steps("product", "api_calls") == ["intent", "confirmed"]
    # Another warehouse finds the product there, also when Stripe has forgotten how it was made.
    server.control.advance(25 * 3600)
    warehouse.connection.execute("delete from ops.stripe_sync_log where entity = 'product'")
    warehouse.add("l5", **price)
    assert sync(warehouse, target).is_clean
    assert warehouse.steps("product", "api_calls") == ["intent", "failed", "confirmed"]


def test_amounts_go_alone_where_a_product_may_not_be_made(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    price = {"quantity": Decimal(2), "unit_amount_minor": Decimal(50), "amount_minor": 100}
    warehouse.add("l1", **price)
    settings = read_invoice_settings({"METERING_STRIPE_UNIT_PRICES": "0"})
    sync_invoice_items(warehouse.opened, target, billing_period=None, progress=lambda message: None, settings=settings)
    warehouse.add("l2", **price)
    body = '{"error": {"type": "invalid_request_error", "message": "not allowed"}}'
    report = sync(warehouse, target_of(server, answer_with(posts("/v1/products"), 403, body)))
    assert (report.created, report.failed, len(report.problems)) == (1, 0, 1)
    assert "lines of metric api_calls show their amount alone" in report.problems[0]
    assert [line.quantity_decimal for line in items_by_line(target).values()] == [1, 1]


def test_the_second_run_creates_nothing(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path
) -> None:
    three_invoices(warehouse)
    sync(warehouse, target)
    logged = warehouse.log()
    forget_idempotency(state)

    def no_request(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        raise AssertionError(f"{method} {url}")

    report = sync(warehouse, target_of(server, no_request))
    assert report == SyncReport(target.account_id, already_confirmed=4)
    assert count_objects(target) == (2, 3, 4)
    assert warehouse.log() == logged


def test_a_later_line_joins_the_invoice_and_customer(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1")
    sync(warehouse, target)
    warehouse.add("l2", amount_minor=5)
    assert sync(warehouse, target) == SyncReport(target.account_id, created=1, already_confirmed=1)
    assert count_objects(target) == (1, 1, 2)
    assert read_back_invoices(target)[0].line_ids == ("l1", "l2")


def test_a_mapped_customer_is_used(warehouse: Warehouse, target: StripeTarget) -> None:
    mapped = target.client.v1.customers.create({"name": "Mapped"}).id
    warehouse.add("l1", stripe_customer_id=mapped)
    assert sync(warehouse, target).is_clean
    assert count_objects(target)[0] == 1
    assert read_back_invoices(target)[0].customer_id == mapped
    assert warehouse.steps("customer", "customer_1") == []


def test_the_log_has_an_intent_and_an_outcome_for_every_object(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1", amount_minor=1050)
    sync(warehouse, target)
    columns = [row[0] for row in warehouse.connection.execute("describe ops.stripe_sync_log").fetchall()]
    rows = [dict(zip(columns, row, strict=True)) for row in warehouse.log()]
    assert [(row["entity"], row["entity_key"], row["step"]) for row in rows] == [
        ("customer", "customer_1", "intent"),
        ("customer", "customer_1", "confirmed"),
        ("invoice", "inv_1", "intent"),
        ("invoice", "inv_1", "confirmed"),
        ("invoice_item", "l1", "intent"),
        ("invoice_item", "l1", "confirmed"),
    ]
    assert len({row["attempt_id"] for row in rows}) == 1
    assert {row["stripe_account"] for row in rows} == {target.account_id}
    intent, outcome = rows[-2:]
    assert intent["idempotency_key"] == outcome["idempotency_key"]
    assert (intent["stripe_object_id"], intent["http_status"]) == (None, None)
    assert outcome["stripe_object_id"] == item_id_of(items_by_line(target)["l1"])
    assert target.client.v1.invoice_items.retrieve(outcome["stripe_object_id"]).amount == 1050
    assert outcome["http_status"] == 200
    assert outcome["request_id"].startswith("req_")
    assert [(row["amount_minor"], row["currency"]) for row in rows[-2:]] == [(1050, "USD")] * 2
    now = datetime.now(UTC).replace(tzinfo=None)
    assert all(abs((now - row["logged_at"]).total_seconds()) < 60 for row in rows)


def test_the_intent_is_committed_before_the_call(warehouse: Warehouse, server: LocalStripeServer) -> None:
    warehouse.add("l1")
    seen: list[tuple[str, list[str]]] = []

    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if method == "post":
            # Another connection sees only what is committed.
            with warehouse.connection.cursor() as other:
                rows = other.execute(
                    "select step from ops.stripe_sync_log where entity_key in ('customer_1', 'inv_1', 'l1')"
                ).fetchall()
            seen.append((url.rsplit("/", 1)[1], [row[0] for row in rows]))
        return send()

    sync(warehouse, target_of(server, fault))
    pair = ["intent", "confirmed"]
    assert seen == [
        ("customers", ["intent"]),
        ("invoices", [*pair, "intent"]),
        ("add_lines", [*pair, *pair, "intent"]),
    ]


def test_large_invoices_report_progress_and_are_read_back_whole(warehouse: Warehouse, target: StripeTarget) -> None:
    for number in range(205):
        warehouse.add(f"l{number:03}", amount_minor=1)
    warehouse.add("m", invoice_id="inv_2", customer_id="customer_2")
    messages: list[str] = []
    sync_invoice_items(warehouse.opened, target, billing_period=None, progress=messages.append)
    assert messages == [
        "invoice 1/2 customer_1 2026-10 USD: 205 lines",
        "invoice inv_1: 100 of 205 lines",
        "invoice inv_1: 200 of 205 lines",
        "invoice 2/2 customer_2 2026-10 USD: 1 lines",
    ]
    read = read_back_invoices(target)
    assert (read[0].total_minor, read[0].item_count, len(set(read[0].line_ids))) == (205, 205, 205)


def test_only_the_asked_period_is_sent(warehouse: Warehouse, target: StripeTarget) -> None:
    three_invoices(warehouse)
    assert sync(warehouse, target, "2026-11") == SyncReport(target.account_id, created=1)
    assert list(items_by_line(target)) == ["l3"]


def test_held_lines_wait_until_released(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1")
    warehouse.add("l2", hold_reason="guards failed")
    report = sync(warehouse, target)
    assert report == SyncReport(target.account_id, created=1, held=1)
    assert report.is_clean
    assert list(items_by_line(target)) == ["l1"]
    warehouse.set("l2", "hold_reason = null")
    assert sync(warehouse, target).created == 1
    assert sorted(items_by_line(target)) == ["l1", "l2"]


def test_another_account_is_sent_everything_again(warehouse: Warehouse, target: StripeTarget, tmp_path: Path) -> None:
    three_invoices(warehouse)
    sync(warehouse, target)
    with LocalStripeServer(tmp_path / "other.sqlite") as second:
        other = target_of(second)
        assert sync(warehouse, other) == SyncReport(other.account_id, created=4)
        assert count_objects(other) == (2, 3, 4)
    assert sync(warehouse, target).already_confirmed == 4
    assert count_objects(target) == (2, 3, 4)


def test_test_mode_and_live_mode_of_one_account_are_logged_apart(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1")
    in_test_mode = dataclasses.replace(target, mode="test")
    in_live_mode = dataclasses.replace(target, mode="live")
    assert sync(warehouse, in_test_mode).created == 1
    assert sync(warehouse, in_test_mode).already_confirmed == 1
    assert sync(warehouse, in_live_mode).already_confirmed == 0
    assert in_live_mode.log_account == target.account_id


# Invoices of more than 250 lines


def test_an_invoice_of_more_than_250_lines_becomes_several(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.connection.execute(
        """
        insert into marts.stripe_invoice_items by name
        select
            'l' || lpad(number::varchar, 3, '0') as line_id, 'inv_1' as invoice_id, '2026-10.1' as run_id,
            'customer_1' as customer_id, '2026-10' as billing_period, timestamp '2026-10-01' as service_period_start_at,
            timestamp '2026-11-01' as service_period_end_at, 'USD' as currency, 1 as amount_minor,
            case when number = 3 then 'metric_not_confirmed' end as hold_reason
        from range(503) as numbers (number)
        """
    )
    # The second invoice is made, and nobody knows.
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/v1/invoices", "metering_invoice_part]=2"))))
    server.control.advance(25 * 3600)
    assert sync(warehouse, target).is_clean
    warehouse.set("l003", "hold_reason = null")
    assert sync(warehouse, target).created == 1
    read = read_back_invoices(target)
    assert sorted((invoice.item_count, invoice.line_ids[0], invoice.line_ids[-1]) for invoice in read) == [
        (3, "l500", "l502"),
        (250, "l000", "l249"),
        (250, "l250", "l499"),
    ]
    assert {invoice.metering_invoice_id for invoice in read} == {"inv_1"}


# Settings and finalising


def finalizing(warehouse: Warehouse, target: StripeTarget, **settings: Any) -> SyncReport:
    return sync_invoice_items(
        warehouse.opened,
        target,
        billing_period=None,
        progress=lambda message: None,
        settings=InvoiceSettings(finalizes=True, **settings),
    )


def statuses(target: StripeTarget) -> dict[str, str | None]:
    invoices = target.client.v1.invoices.list({"limit": 100}).auto_paging_iter()
    return {invoice.metadata["metering_invoice_id"]: invoice.status for invoice in invoices if invoice.metadata}


def test_invoices_are_finalised_once_whole(warehouse: Warehouse, target: StripeTarget) -> None:
    three_invoices(warehouse)
    warehouse.add("l5", invoice_id="inv_2", billing_period="2026-11", hold_reason="metric_not_confirmed")
    warehouse.add("l6", invoice_id="inv_3", customer_id="customer_2", customer_name=None, currency="JPY",
                  amount_minor=0, hold_reason="zero_amount")  # fmt: skip
    report = finalizing(warehouse, target)
    assert (report.created, report.finalized, report.is_clean) == (4, 2, True)
    assert statuses(target) == {"inv_1": "open", "inv_2": "draft", "inv_3": "open"}
    warehouse.set("l5", "hold_reason = null")
    assert finalizing(warehouse, target).finalized == 1
    assert statuses(target)["inv_2"] == "open"
    assert finalizing(warehouse, target) == SyncReport(target.account_id, already_confirmed=5, held=1)


def test_an_invoice_with_a_refused_line_stays_a_draft(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1")
    warehouse.add("l2", charge_code="x" * 501)
    assert finalizing(warehouse, target).finalized == 0
    assert statuses(target) == {"inv_1": "draft"}


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "error_stored"])
def test_an_invoice_whose_finalising_has_no_known_outcome_is_looked_up(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, kind: FaultKind
) -> None:
    warehouse.add("l1")
    sync(warehouse, target)
    server.control.add(Fault(kind, "POST", "/v1/invoices/", times=10))
    client = stripe.StripeClient(
        SECRET, base_addresses={"api": server.url}, http_client=FaultyHttp(lambda method, url, form, send: send())
    )
    report = finalizing(warehouse, dataclasses.replace(target, client=client))
    assert (report.finalized, report.unknown, report.is_clean) == (0, 1, False)
    server.control.clear()
    server.control.advance(25 * 3600)
    assert finalizing(warehouse, target).finalized == 1
    assert statuses(target) == {"inv_1": "open"}
    assert finalizing(warehouse, target).is_clean


def test_collection_and_tax_are_settings(warehouse: Warehouse, target: StripeTarget) -> None:
    settings = read_invoice_settings(
        {
            "METERING_STRIPE_COLLECTION_METHOD": "send_invoice",
            "METERING_STRIPE_DAYS_UNTIL_DUE": "14",
            "METERING_STRIPE_AUTOMATIC_TAX": "1",
        }
    )
    warehouse.add("l1")
    sync_invoice_items(warehouse.opened, target, billing_period=None, progress=lambda message: None, settings=settings)
    (invoice,) = target.client.v1.invoices.list().data
    assert (invoice.collection_method, invoice.automatic_tax.enabled, invoice.status) == ("send_invoice", True, "draft")
    assert invoice.due_date is not None
    assert invoice.due_date - invoice.created == 14 * 86400


@pytest.mark.parametrize(
    "environ",
    [
        {"METERING_STRIPE_COLLECTION_METHOD": "barter"},
        {"METERING_STRIPE_COLLECTION_METHOD": "send_invoice"},
        {"METERING_STRIPE_DAYS_UNTIL_DUE": "14"},
        {"METERING_STRIPE_COLLECTION_METHOD": "send_invoice", "METERING_STRIPE_DAYS_UNTIL_DUE": "two"},
        {"METERING_STRIPE_METER_GRACE_HOURS": "0"},
        {"METERING_STRIPE_METER_GRACE_HOURS": "840"},
        {"METERING_STRIPE_METER_GRACE_HOURS": "-1"},
        {"METERING_STRIPE_METER_GRACE_HOURS": ""},
        {"METERING_STRIPE_METER_API": "v3"},
        {"METERING_STRIPE_METER_API": ""},
    ],
)
def test_settings_that_cannot_be_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(StripeSyncError, match="METERING_STRIPE_"):
        read_invoice_settings(environ)


def test_customers_may_be_held_instead_of_created(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1")
    assert sync(warehouse, target).created == 1
    mapped = target.client.v1.customers.create({"name": "Mapped"}).id
    warehouse.add("l2")
    warehouse.add("l3", customer_id="customer_2", invoice_id="inv_2", stripe_customer_id=mapped)
    warehouse.add("l4", customer_id="customer_3", invoice_id="inv_3")
    warehouse.add("l5", customer_id="customer_3", invoice_id="inv_3", hold_reason="metric_not_confirmed")
    settings = read_invoice_settings({"METERING_STRIPE_CREATE_CUSTOMERS": "0"})
    messages: list[str] = []
    report = sync_invoice_items(
        warehouse.opened, target, billing_period=None, progress=messages.append, settings=settings
    )
    # The customer that an earlier sync has created is known.
    assert report == SyncReport(target.account_id, created=2, already_confirmed=1, held=2)
    assert messages[0].startswith("customer customer_3: 1 lines held, because METERING_STRIPE_CREATE_CUSTOMERS=0")
    log = read_log(warehouse.opened, target.log_account)
    text = describe_plan(plan_sync(hold_unmapped(read_outbox(warehouse.opened), log), log, None))
    assert "would send 0 lines on 0 invoices; 3 there already, 2 held, 0 blocked" in text
    assert messages[0] in text
    assert count_objects(target)[0] == 2
    assert sync(warehouse, target).created == 1


def test_a_plan_says_what_would_be_sent(warehouse: Warehouse, target: StripeTarget) -> None:
    three_invoices(warehouse)
    sync(warehouse, target)
    warehouse.add("l5", amount_minor=-25, stripe_customer_id=None)
    warehouse.add("l6", hold_reason="metric_not_confirmed")
    warehouse.set("l4", "amount_minor = 901")
    text = describe_plan(plan_sync(read_outbox(warehouse.opened), read_log(warehouse.opened, target.log_account), None))
    assert "invoice inv_1: 1 lines, -25 USD in minor units, customer customer_1 (created if not there)" in text
    assert "would send 1 lines on 1 invoices; 3 there already, 1 held, 0 blocked" in text
    assert "line l4: changed after the sync, 900 JPY" in text


# Crashes and lost answers


@pytest.mark.parametrize("keys_expired", [False, True], ids=["keys kept", "keys expired"])
@pytest.mark.parametrize(
    ("path", "containing", "entity", "entity_key"),
    [
        ("/v1/customers", "", "customer", "customer_1"),
        ("/v1/invoices", "", "invoice", "inv_1"),
        ("/add_lines", "=l2", "invoice_item", "l2"),
    ],
)
def test_a_crash_after_stripe_created_the_object_does_not_double_it(
    warehouse: Warehouse,
    server: LocalStripeServer,
    target: StripeTarget,
    state: Path,
    path: str,
    containing: str,
    entity: str,
    entity_key: str,
    keys_expired: bool,
) -> None:
    for line_id in ("l1", "l2", "l3"):
        warehouse.add(line_id)
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts(path, containing))))
    assert warehouse.steps(entity, entity_key) == ["intent"]
    if keys_expired:
        forget_idempotency(state)
    report = sync(warehouse, target)
    assert report.is_clean
    assert report.confirmed_by_lookup == (3 if entity == "invoice_item" else 0)
    assert report.created + report.confirmed_by_lookup == 3
    assert count_objects(target) == (1, 1, 3)
    assert warehouse.steps(entity, entity_key) == ["intent", "confirmed"]
    assert sync(warehouse, target) == SyncReport(target.account_id, already_confirmed=3)
    assert count_objects(target) == (1, 1, 3)


@pytest.mark.parametrize("path", ["/v1/customers", "/v1/invoices", "/add_lines"])
def test_a_crash_before_the_call_sends_once(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, path: str
) -> None:
    warehouse.add("l1")
    for _ in range(2):
        with pytest.raises(Crash):
            sync(warehouse, target_of(server, crash_before(posts(path))))
    assert sync(warehouse, target) == SyncReport(target.account_id, created=1)
    assert count_objects(target) == (1, 1, 1)


def test_a_lookup_finds_a_line_beyond_the_first_page(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path
) -> None:
    for number in range(119):
        warehouse.add(f"l{number:03}", amount_minor=1)
    assert sync(warehouse, target).created == 119
    warehouse.add("l999", amount_minor=1)
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines", "=l999"))))
    forget_idempotency(state)
    report = sync(warehouse, target)
    assert (report.confirmed_by_lookup, report.created) == (1, 0)
    assert count_objects(target)[2] == 120


def test_usage_that_comes_back_under_another_id_is_not_sent_again(warehouse: Warehouse, target: StripeTarget) -> None:
    """A time zone, price version or subscription that changed gives its lines new ids."""
    warehouse.add("l1", amount_minor=100)
    warehouse.add("other", customer_id="customer_2", invoice_id="inv_2", amount_minor=7)
    assert sync(warehouse, target).created == 2
    warehouse.set("l1", "line_id = 'l2'")
    warehouse.add("other_2", customer_id="customer_2", invoice_id="inv_2", amount_minor=8)
    for created in (1, 0):
        report = sync(warehouse, target)
        assert (report.created, report.blocked, report.changed_after_sync) == (created, 1, 1)
        assert not report.is_clean
        assert any("inv_1" in problem and "may be the same usage" in problem for problem in report.problems)
    assert sorted(items_by_line(target)) == ["l1", "other", "other_2"]
    # Another billing period of the customer is not held up.
    warehouse.add("l3", invoice_id="inv_3", billing_period="2026-11", amount_minor=9)
    assert sync(warehouse, target, billing_period="2026-11").created == 1


@pytest.mark.parametrize(
    "change",
    [
        "line_id = 'l2'",
        "currency = 'EUR', invoice_id = 'inv_eur'",
        "customer_id = 'customer_2'",
        "hold_reason = 'wait'",
    ],
)
def test_a_line_of_unknown_outcome_that_changed_is_reported_and_sent_nowhere(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, change: str
) -> None:
    warehouse.add("l1", amount_minor=100)
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))
    warehouse.set("l1", change)
    for _ in range(3):
        report = sync(warehouse, target)
        assert not report.is_clean
        assert any("without a known outcome" in problem for problem in report.problems)
    assert count_objects(target)[2] == 1
    # Put back as it was, it is found.
    warehouse.set("l2" if "line_id" in change else "l1", "line_id = 'l1', currency = 'USD', invoice_id = 'inv_1', "
                  "customer_id = 'customer_1', hold_reason = null")  # fmt: skip
    assert sync(warehouse, target).confirmed_by_lookup == 1
    assert count_objects(target)[2] == 1


def test_a_line_changed_between_crash_and_lookup_is_reported_with_both_amounts(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.add("l1", amount_minor=100)
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))
    warehouse.set("l1", "amount_minor = 300")
    for confirmed_by_lookup in (1, 0):
        report = sync(warehouse, target)
        assert (report.confirmed_by_lookup, report.changed_after_sync) == (confirmed_by_lookup, 1)
        (change,) = report.changes
        assert (change.synced_amount_minor, change.current_amount_minor) == (100, 300)
    assert items_by_line(target)["l1"].amount == 100


@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
def test_a_lost_connection_stops_the_run_and_the_next_resolves_it(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path, committed: bool
) -> None:
    three_invoices(warehouse)
    is_line = posts("/add_lines", "=l3")

    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if is_line(method, url, form):
            if committed:
                send()
            raise stripe.APIConnectionError("Read timed out.")  # type: ignore[no-untyped-call]
        return send()

    report = sync(warehouse, target_of(server, fault))
    assert (report.created, report.unknown, report.failed, report.is_clean) == (2, 1, 0, False)
    assert len(report.problems) == 1
    assert "l3" in report.problems[0]
    assert "Run the sync again" in report.problems[0]
    assert warehouse.steps("invoice_item", "l3") == ["intent"]
    assert warehouse.steps("invoice", "inv_3") == []
    forget_idempotency(state)
    report = sync(warehouse, target)
    assert report.is_clean
    assert report.confirmed_by_lookup == (1 if committed else 0)
    assert count_objects(target) == (2, 3, 4)


def test_a_server_error_is_retried_under_one_key_then_left_unknown(
    warehouse: Warehouse,
    server: LocalStripeServer,
    target: StripeTarget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)
    warehouse.add("l1")
    keys: list[str] = []

    class Recording(FaultyHttp):
        def request(self, method: str, url: str, headers: Any, post_data: Any = None) -> Answer:  # type: ignore[override]
            if url.endswith("/add_lines"):
                keys.append(headers["Idempotency-Key"])
            return super().request(method, url, headers, post_data)

    client = stripe.StripeClient(
        SECRET,
        base_addresses={"api": server.url},
        max_network_retries=3,
        http_client=Recording(answer_with(posts("/add_lines"), 503)),
    )
    report = sync(warehouse, dataclasses.replace(target, client=client))
    assert (report.unknown, report.is_clean) == (1, False)
    assert keys == [batch_key(target.account_id, read_outbox(warehouse.opened), [0])] * 4
    assert warehouse.steps("invoice_item", "l1") == ["intent"]
    assert sync(warehouse, target).created == 1


@pytest.mark.parametrize("status", [409, 500, 502])
def test_a_conflict_or_server_error_leaves_the_line_open_and_stops(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, status: int
) -> None:
    three_invoices(warehouse)
    body = '{"error": {"type": "api_error", "message": "try later"}}'
    report = sync(warehouse, target_of(server, answer_with(posts("/add_lines"), status, body)))
    assert (report.unknown, report.failed, report.created) == (1, 0, 0)
    assert warehouse.steps("invoice_item", "l1") == warehouse.steps("invoice_item", "l2") == ["intent"]
    assert warehouse.steps("invoice_item", "l3") == []
    assert sync(warehouse, target).created == 4
    assert count_objects(target) == (2, 3, 4)


@pytest.mark.parametrize("committed", [False, True], ids=["not created", "created"])
def test_a_server_error_that_stripe_stored_is_resolved_by_another_key(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, committed: bool
) -> None:
    warehouse.add("l1")
    stored_under = batch_key(target.account_id, read_outbox(warehouse.opened), [0])
    executed: list[str] = []

    class Storing(FaultyHttp):
        """Executes a key once, with or without effect, and answers it with the same 500 ever after."""

        def request(self, method: str, url: str, headers: Any, post_data: Any = None) -> Answer:  # type: ignore[override]
            if headers.get("Idempotency-Key") != stored_under:
                return super().request(method, url, headers, post_data)
            if not executed and committed:
                super().request(method, url, headers, post_data)
            replayed = {"Idempotent-Replayed": "true"} if executed else {}
            executed.append(stored_under)
            body = b'{"error": {"type": "api_error", "message": "An error occurred."}}'
            return body, 500, requests.structures.CaseInsensitiveDict(replayed)

    client = stripe.StripeClient(
        SECRET,
        base_addresses={"api": server.url},
        max_network_retries=0,
        http_client=Storing(lambda method, url, form, send: send()),
    )
    failing = dataclasses.replace(target, client=client)
    runs = [sync(warehouse, failing) for _ in range(1 if committed else 3)]
    assert runs[0].unknown == 1
    if committed:
        assert sync(warehouse, failing).confirmed_by_lookup == 1
    else:
        assert (runs[1].unknown, runs[2].created) == (1, 1)
        assert warehouse.steps("invoice_item", "l1") == ["intent", "intent", "failed", "intent", "confirmed"]
    assert count_objects(target) == (1, 1, 1)


def test_a_failed_lookup_stops_the_run_and_creates_nothing(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.add("l1")
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))

    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if method == "get" and "/lines" in url:
            return b"{}", 500, {}
        return send()

    report = sync(warehouse, target_of(server, fault))
    assert (report.unknown, report.created, report.is_clean) == (1, 0, False)
    assert count_objects(target) == (1, 1, 1)
    assert sync(warehouse, target).confirmed_by_lookup == 1


# Refusals


def test_a_refused_line_stops_alone_and_is_sent_once_put_right(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1")
    warehouse.add("l2", charge_code="x" * 501)
    warehouse.add("l3")
    report = sync(warehouse, target)
    assert (report.created, report.failed, report.is_clean) == (2, 1, False)
    assert sorted(items_by_line(target)) == ["l1", "l3"]
    (problem,) = report.problems
    assert "invoice_item l2" in problem
    assert "500 characters" in problem
    status, code, body = warehouse.connection.execute(
        "select http_status, error_code, error_body from ops.stripe_sync_log where step = 'failed' and entity_key = 'l2'"
    ).fetchall()[-1]
    assert (status, code) == (400, "invalid_request_error")
    assert "metering_charge_code" in body
    warehouse.set("l2", "charge_code = 'calls'")
    assert sync(warehouse, target) == SyncReport(target.account_id, created=1, already_confirmed=2)
    # Once with the others, once alone, once put right.
    assert warehouse.steps("invoice_item", "l2") == ["intent", "failed"] * 2 + ["intent", "confirmed"]


def add_lines_calls(calls: list[int]) -> HttpFault:
    """Notes how many lines each call has."""

    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if url.endswith("/add_lines"):
            calls.append(form.count("metering_line_id"))
        return send()

    return fault


def test_a_refused_call_is_taken_apart(warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget) -> None:
    """By the line that Stripe names; where it names none, into halves."""
    for number in range(8):
        warehouse.add(f"l{number}", charge_code="x" * 501 if number == 5 else "calls")
    calls: list[int] = []
    report = sync(warehouse, target_of(server, add_lines_calls(calls)))
    assert (calls, report.created, report.failed) == ([8, 7, 1], 7, 1)
    for number in range(8):
        warehouse.add(f"m{number}", invoice_id="inv_2")

    def refuse(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if posts("/add_lines", "=m5")(method, url, form):
            calls.append(form.count("metering_line_id"))
            return b'{"error": {"type": "card_error", "message": "no"}}', 402, {}
        return add_lines_calls(calls)(method, url, form, send)

    calls.clear()
    report = sync(warehouse, target_of(server, refuse))
    assert (calls, report.created, report.failed) == ([1, 8, 4, 4, 2, 1, 1, 2], 7, 2)
    assert sorted(items_by_line(target)) == [f"{owner}{number}" for owner in "lm" for number in (0, 1, 2, 3, 4, 6, 7)]


def test_lines_that_a_refused_call_has_added_all_the_same_are_not_sent_again(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    """Stripe does not say that it adds all lines of a call or none."""
    for line_id in ("l1", "l2", "l3"):
        warehouse.add(line_id)
    refused: list[str] = []

    def add_one_and_refuse(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if not url.endswith("/add_lines") or refused:
            return send()
        refused.append(url)
        lines: Any = [{"amount": 100, "metadata": {"metering_line_id": "l2"}}]
        target.client.v1.invoices.add_lines(url.split("/")[-2], {"lines": lines})
        return b'{"error": {"type": "invalid_request_error", "message": "no"}}', 400, {}

    report = sync(warehouse, target_of(server, add_one_and_refuse))
    assert (report.created, report.confirmed_by_lookup, report.is_clean) == (2, 1, True)
    assert count_objects(target)[2] == 3


def test_an_invoice_that_takes_no_lines_refuses_them_in_one_call(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path
) -> None:
    warehouse.add("l0")
    sync(warehouse, target)
    for line_id in ("l1", "l2", "l3"):
        warehouse.add(line_id)
    set_invoice_status(state, "open")
    calls: list[int] = []
    report = sync(warehouse, target_of(server, add_lines_calls(calls)))
    assert (calls, report.failed, len(report.problems)) == ([3], 3, 1)
    assert "a call of 3 lines from l1 on was refused" in report.problems[0]
    assert "invoice_not_editable" in report.problems[0]


def test_lines_of_a_call_without_an_outcome_go_together_again_under_its_key(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    """Stripe may still be at it, so that a look shows nothing: then only the key keeps them from being doubled."""
    warehouse.add("l2")
    warehouse.add("l3")
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))
    warehouse.add("l1")

    def stale(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if method == "get" and "/lines" in url and not calls:
            return b'{"object": "list", "data": [], "has_more": false, "url": "/v1/invoices/in/lines"}', 200, {}
        return add_lines_calls(calls)(method, url, form, send)

    calls: list[int] = []
    report = sync(warehouse, target_of(server, stale))
    assert (calls, report.created, report.is_clean) == ([1, 2], 3, True)
    assert count_objects(target)[2] == 3


def test_a_line_that_stripe_takes_and_does_not_show_has_no_known_outcome(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.add("l1")

    def hide(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        body, status, headers = send()
        if url.endswith("/add_lines"):
            invoice = json.loads(body)
            invoice["lines"]["data"] = []
            body = json.dumps(invoice).encode()
        return body, status, headers

    report = sync(warehouse, target_of(server, hide))
    assert (report.created, report.unknown, report.is_clean) == (0, 1, False)
    assert "does not show every line" in report.problems[0]
    assert sync(warehouse, target).confirmed_by_lookup == 1
    assert count_objects(target)[2] == 1


def test_an_amount_that_stripe_changes_is_reported(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.add("l1", amount_minor=100)

    def change(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        body, status, headers = send()
        if url.endswith("/add_lines"):
            body = body.replace(b'"amount": 100', b'"amount": 99')
        return body, status, headers

    report = sync(warehouse, target_of(server, change))
    assert (report.created, report.changed_after_sync) == (1, 1)
    assert "99 USD in Stripe, now 100 USD" in report.problems[0]


def test_a_refusal_that_stripe_stored_does_not_come_back_once_put_right(
    warehouse: Warehouse, target: StripeTarget, state: Path
) -> None:
    warehouse.add("l1")
    sync(warehouse, target)
    warehouse.add("l2")
    set_invoice_status(state, "open")
    report = sync(warehouse, target)
    assert (report.failed, report.already_confirmed) == (1, 1)
    assert "invoice_not_editable" in report.problems[0]
    set_invoice_status(state, "draft")
    assert sync(warehouse, target).created == 1
    assert count_objects(target) == (1, 1, 2)


def test_a_refused_customer_fails_its_lines_alone(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1", customer_id="x" * 501)
    warehouse.add("l2", customer_id="x" * 501, invoice_id="inv_2")
    warehouse.add("l3", customer_id="customer_2", invoice_id="inv_3")
    warehouse.add("l4", customer_id="customer_3", invoice_id="inv_4", stripe_customer_id="cus_unknown")
    report = sync(warehouse, target)
    assert (report.created, report.failed, report.is_clean) == (1, 3, False)
    assert len(report.problems) == 3
    assert any("No such customer: 'cus_unknown'" in problem for problem in report.problems)
    assert warehouse.steps("customer", "x" * 501) == ["intent", "failed"]
    assert warehouse.steps("invoice", "inv_4") == ["intent", "failed"]
    assert list(items_by_line(target)) == ["l3"]


def test_an_idempotency_error_is_resolved_by_looking_again(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    """Stripe has the first try, a lookup does not show it yet, and the same key brings other parameters."""
    warehouse.add("l1", description="first")
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))
    warehouse.set("l1", "description = 'second'")

    def stale(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if method == "get" and "/lines" in url:
            return b'{"object": "list", "data": [], "has_more": false, "url": "/v1/invoices/in/lines"}', 200, {}
        return send()

    report = sync(warehouse, target_of(server, stale))
    assert (report.failed, report.created) == (1, 0)
    assert "idempotency_error" in report.problems[0]
    assert sync(warehouse, target).confirmed_by_lookup == 1
    assert count_objects(target)[2] == 1


def test_a_refused_key_ends_the_run(warehouse: Warehouse, server: LocalStripeServer) -> None:
    three_invoices(warehouse)
    message = f"Invalid API Key provided: {SECRET}"
    body = json.dumps({"error": {"type": "invalid_request_error", "message": message}})
    report = sync(warehouse, target_of(server, answer_with(posts("/add_lines"), 401, body)))
    assert (report.failed, report.created, report.is_clean) == (2, 0, False)
    assert "STRIPE_API_KEY" in report.problems[0]
    assert warehouse.steps("invoice", "inv_2") == []
    assert SECRET not in str(report)
    assert SECRET not in str(warehouse.log())


# Rate limits


def test_a_rate_limit_waits_as_long_as_stripe_asks(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.add("l1")
    refusals = iter(
        [
            (
                b'{"error": {"message": "slow"}}',
                429,
                requests.structures.CaseInsensitiveDict({"retry-after": "7"}),
            ),
            (b'{"error": {"message": "slow"}}', 429, {}),
        ]
    )

    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        refusal = next(refusals, None) if posts("/add_lines")(method, url, form) else None
        return send() if refusal is None else refusal

    waits: list[float] = []
    report = sync_invoice_items(
        warehouse.opened,
        target_of(server, fault),
        billing_period=None,
        progress=lambda message: None,
        sleep=waits.append,
    )
    assert report == SyncReport(target.account_id, created=1)
    assert waits[0] == 7
    assert 1 <= waits[1] <= 1.5
    assert count_objects(target)[2] == 1


def test_a_rate_limit_that_lasts_leaves_the_line_open(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.add("l1")
    waits: list[float] = []
    report = sync_invoice_items(
        warehouse.opened,
        target_of(server, answer_with(posts("/add_lines"), 429, '{"error": {"message": "slow"}}')),
        billing_period=None,
        progress=lambda message: None,
        sleep=waits.append,
    )
    assert (report.unknown, report.failed, len(waits)) == (1, 0, 5)
    assert waits == sorted(waits)
    assert warehouse.steps("invoice_item", "l1") == ["intent"]
    assert sync(warehouse, target).created == 1


def test_a_wait_longer_than_a_minute_is_not_waited_for() -> None:
    def limited() -> None:
        raise stripe.RateLimitError("slow", http_status=429, headers={"Retry-After": "61"})

    with pytest.raises(stripe.RateLimitError):
        with_backoff(limited, lambda seconds: pytest.fail(f"waited {seconds} s"))


# Changes after the sync


def test_a_changed_amount_or_currency_is_reported_and_not_sent(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1", amount_minor=100)
    warehouse.add("l2", amount_minor=200, invoice_id="inv_2")
    warehouse.add("l3", amount_minor=300)
    sync(warehouse, target)
    logged = warehouse.log()
    warehouse.set("l1", "amount_minor = 101")
    warehouse.set("l2", "currency = 'EUR'")
    report = sync(warehouse, target)
    assert (report.created, report.already_confirmed, report.changed_after_sync) == (0, 1, 2)
    assert not report.is_clean
    assert [
        (c.line_id, c.synced_amount_minor, c.synced_currency, c.current_amount_minor, c.current_currency)
        for c in report.changes
    ] == [("l1", 100, "USD", 101, "USD"), ("l2", 200, "USD", 200, "EUR")]
    assert "100 USD in Stripe, now 101 USD" in report.problems[0]
    assert items_by_line(target)["l1"].amount == 100
    assert warehouse.log() == logged
    assert count_objects(target)[2] == 3


def test_a_sent_line_that_is_gone_or_held_is_reported(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1", amount_minor=100)
    warehouse.add("l2", amount_minor=200)
    sync(warehouse, target)
    warehouse.connection.execute("delete from marts.stripe_invoice_items where line_id = 'l1'")
    warehouse.set("l2", "hold_reason = 'metric not confirmed'")
    report = sync(warehouse, target)
    assert (report.changed_after_sync, report.held, report.already_confirmed) == (2, 0, 0)
    assert [(c.line_id, c.synced_amount_minor, c.current_amount_minor) for c in report.changes] == [
        ("l1", 100, None),
        ("l2", 200, None),
    ]
    assert not report.is_clean


# What stops a sync before it starts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"line_id": "l1"}, "line_id l1 more than once"),
        ({"customer_id": "customer_2"}, "invoice_id inv_1"),
        ({"currency": "EUR"}, "invoice_id inv_1"),
        ({"billing_period": "2026-11"}, "invoice_id inv_1"),
        ({"stripe_customer_id": "cus_1"}, "invoice_id inv_1"),
    ],
)
def test_an_outbox_that_contradicts_itself_is_refused_whole(
    warehouse: Warehouse, target: StripeTarget, changes: dict[str, str], message: str
) -> None:
    warehouse.add("l1")
    warehouse.add(**({"line_id": "l2"} | changes))
    with pytest.raises(StripeSyncError, match=message):
        sync(warehouse, target)
    assert count_objects(target) == (0, 0, 0)
    assert warehouse.log() == []


def test_an_open_transaction_is_refused_before_anything_is_sent(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1")
    warehouse.connection.begin()
    with pytest.raises(StripeSyncError, match="transaction"):
        sync(warehouse, target)
    warehouse.connection.rollback()
    assert count_objects(target) == (0, 0, 0)


@pytest.mark.parametrize("table", ["marts.stripe_invoice_items", "ops.stripe_sync_log"])
def test_a_missing_table_is_named(warehouse: Warehouse, target: StripeTarget, table: str) -> None:
    warehouse.connection.execute(f"drop table {table}")
    with pytest.raises(StripeSyncError, match=table.split(".")[1]):
        sync(warehouse, target)


def test_reading_back_names_what_failed(server: LocalStripeServer) -> None:
    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        return (b"{}", 500, {}) if "/v1/invoices" in url else send()

    with pytest.raises(StripeSyncError, match="reading invoices back failed"):
        read_back_invoices(target_of(server, fault))


def test_reading_back_leaves_out_what_the_sync_did_not_make(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1")
    sync(warehouse, target)
    customer_id = target.client.v1.customers.create({}).id
    target.client.v1.invoices.create({"customer": customer_id, "metadata": {"made_by": "hand"}})
    made = read_back_invoices(target)
    assert [invoice.metering_invoice_id for invoice in made] == ["inv_1"]
    target.client.v1.invoice_items.create(
        {
            "customer": made[0].customer_id,
            "invoice": made[0].stripe_invoice_id,
            "amount": 1,
            "currency": "usd",
        }
    )
    (invoice,) = read_back_invoices(target)
    assert (invoice.item_count, invoice.line_ids, invoice.total_minor) == (2, ("l1",), 101)


# Which Stripe, and the secrecy of its key


def test_without_a_key_the_local_server_is_used_and_keeps_its_account(state: Path) -> None:
    accounts = set()
    for _ in range(2):
        with open_stripe_target({}, state) as target:
            accounts.add(target.account_id)
            assert target.mode == "local"
            assert target.label == f"local Stripe server ({target.account_id})"
            assert target.log_account == target.account_id
            assert stripe.enable_telemetry is False
    assert len(accounts) == 1


def test_a_test_key_uses_the_given_address(server: LocalStripeServer, tmp_path: Path) -> None:
    environ = {"STRIPE_API_KEY": f" {SECRET}\n", "METERING_STRIPE_API_BASE": f"{server.url}/"}
    unused = tmp_path / "unused.sqlite"
    with open_stripe_target(environ, unused) as target:
        assert target.mode == "test"
        assert target.account_id == target_of(server).account_id
        assert target.log_account == f"{target.account_id}:test"
    assert not unused.exists()


@pytest.mark.parametrize("key", ["sk_live_51Hq8Zk3vXwYb9", "rk_live_51Hq8Zk3vXwYb9"])
@pytest.mark.parametrize("consent", [None, "", "0", "true"])
def test_a_live_key_needs_consent(server: LocalStripeServer, state: Path, key: str, consent: str | None) -> None:
    environ = {"STRIPE_API_KEY": key, "METERING_STRIPE_API_BASE": server.url}
    if consent is not None:
        environ["METERING_STRIPE_LIVE"] = consent
    with (
        pytest.raises(StripeTargetError, match="METERING_STRIPE_LIVE=1") as caught,
        open_stripe_target(environ, state),
    ):
        pass
    assert key not in repr(caught.value)


def test_a_live_key_with_consent_is_sent(server: LocalStripeServer, state: Path) -> None:
    """The local server then refuses it, which shows that it arrived."""
    key = "sk_live_51Hq8Zk3vXwYb9"
    environ = {"STRIPE_API_KEY": key, "METERING_STRIPE_LIVE": "1", "METERING_STRIPE_API_BASE": server.url}
    with (
        pytest.raises(StripeTargetError, match="takes no live key") as caught,
        open_stripe_target(environ, state),
    ):
        pass
    assert key not in repr(caught.value)


@pytest.mark.parametrize("key", ["", "  ", "pk_test_abc", "sk_test_", "sk_test_a b", "sk_test_a\nX: y", "abcdefgh"])
def test_a_malformed_key_is_refused_without_being_repeated(state: Path, key: str) -> None:
    with (
        pytest.raises(StripeTargetError, match="STRIPE_API_KEY") as caught,
        open_stripe_target({"STRIPE_API_KEY": key}, state),
    ):
        pass
    assert key.strip() in ("", "sk_test_") or key not in str(caught.value)


@pytest.mark.parametrize("base", ["http://stripe.example.com", "ftp://127.0.0.1", "127.0.0.1:1", "https://"])
def test_a_key_is_not_sent_unencrypted(state: Path, base: str) -> None:
    environ = {"STRIPE_API_KEY": SECRET, "METERING_STRIPE_API_BASE": base}
    with (
        pytest.raises(StripeTargetError, match="METERING_STRIPE_API_BASE"),
        open_stripe_target(environ, state),
    ):
        pass


def test_an_unreachable_stripe_is_named(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)
    with LocalStripeServer(state) as server:
        environ = {"STRIPE_API_KEY": SECRET, "METERING_STRIPE_API_BASE": server.url}
    with (
        pytest.raises(StripeTargetError, match="GET /v1/account failed") as caught,
        open_stripe_target(environ, state),
    ):
        pass
    assert SECRET not in repr(caught.value)


def test_the_key_shows_up_nowhere(
    warehouse: Warehouse,
    server: LocalStripeServer,
    state: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    three_invoices(warehouse)
    warehouse.add("l5", charge_code="x" * 501)
    messages: list[str] = []
    environ = {"STRIPE_API_KEY": SECRET, "METERING_STRIPE_API_BASE": server.url}
    with open_stripe_target(environ, state) as target:
        report = sync_invoice_items(warehouse.opened, target, billing_period=None, progress=messages.append)
        read_back_invoices(target)
        shown = [repr(target), str(target), repr(report), *messages]
    assert (report.created, report.failed) == (4, 1)
    shown += [str(row) for row in warehouse.log()]
    shown += [record.getMessage() for record in caplog.records]
    shown += [*capfd.readouterr()]
    assert len(caplog.records) > 10
    assert all(SECRET not in text for text in shown)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"key {SECRET}.", "key sk_test_[redacted]"),
        ("rk_live_abcDEF123, wrong", "rk_live_[redacted], wrong"),
        ("Invalid API Key provided: sk_test_****abcd", "Invalid API Key provided: sk_test_[redacted]"),
        ("keys start with sk_test_.", "keys start with sk_test_."),
    ],
)
def test_keys_are_redacted(text: str, redacted: str) -> None:
    assert redact_keys(text) == redacted
