"""The sync from the outbox to Stripe: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

import dataclasses
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

from orchestration.lib.stripe_errors import StripeSyncError
from orchestration.lib.stripe_readback import item_id_of, list_lines, read_back_invoices
from orchestration.lib.stripe_settings import read_invoice_settings
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


# What stops a sync before it starts


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
