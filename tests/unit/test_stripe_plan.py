"""What a sync sends and reports as changed: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

import pytest

from orchestration.lib.stripe_errors import StripeSyncError
from orchestration.lib.stripe_plan import describe_plan, hold_unmapped, plan_sync
from orchestration.lib.stripe_settings import read_invoice_settings
from orchestration.lib.stripe_sync import sync_invoice_items
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_tables import read_log, read_outbox
from orchestration.lib.stripe_target import StripeTarget
from tests.unit.stripe_outbox import Warehouse, count_objects, items_by_line, sync, three_invoices


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


def test_earlier_periods_with_lines_left_to_send_are_named(warehouse: Warehouse, target: StripeTarget) -> None:
    """A line that was held until later, say. What was closed before anything was sent is left alone."""
    for month in ("08", "09", "10", "11", "12"):
        warehouse.add(f"l{month}", invoice_id=f"inv_{month}", billing_period=f"2026-{month}")
    warehouse.add("held", invoice_id="inv_09", billing_period="2026-09", hold_reason="metric_not_confirmed")

    def sync_period(period: str) -> tuple[str, ...]:
        return sync_invoice_items(
            warehouse.opened, target, billing_period=period, progress=lambda message: None
        ).left_unsent

    assert [sync_period("2026-09"), sync_period("2026-11")] == [(), ("2026-10",)]
    warehouse.set("held", "hold_reason = null")
    assert sync_period("2026-12") == ("2026-09", "2026-10")
    # A month that went to meters was sent as well.
    warehouse.add("event", invoice_id="inv_08", billing_period="2026-08", hold_reason="on_a_meter")
    assert sync_period("2026-12") == ("2026-08", "2026-09", "2026-10")
    assert sync(warehouse, target).left_unsent == ()


# Changes after the sync


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
