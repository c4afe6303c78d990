"""The sync from the outbox to Stripe: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from orchestration.lib.stripe_errors import StripeSyncError
from orchestration.lib.stripe_readback import item_id_of, read_back_invoices
from orchestration.lib.stripe_settings import read_invoice_settings
from orchestration.lib.stripe_sync import sync_invoice_items
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_target import StripeTarget
from orchestration.local_stripe import LocalStripeServer
from tests.unit.stripe_outbox import (
    Answer,
    Crash,
    Warehouse,
    answer_with,
    count_objects,
    crash_after,
    forget_idempotency,
    items_by_line,
    posts,
    sync,
    target_of,
    three_invoices,
)


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


def test_a_product_that_was_deleted_in_stripe_is_named_with_the_ways_out(
    warehouse: Warehouse, target: StripeTarget, state: Path
) -> None:
    price = {"quantity": Decimal(2), "unit_amount_minor": Decimal(50), "amount_minor": 100}
    warehouse.add("l1", **price)
    sync(warehouse, target)
    with closing(sqlite3.connect(state)) as connection, connection:
        connection.execute("delete from objects where kind = 'product'")
    warehouse.add("l2", **price)
    report = sync(warehouse, target)
    assert report.failed == 1
    assert "Restore the product in Stripe, or set METERING_STRIPE_UNIT_PRICES=0" in report.problems[0]
    assert sync(warehouse, target, settings=read_invoice_settings({"METERING_STRIPE_UNIT_PRICES": "0"})).created == 1


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
