"""The reading back of invoices: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from orchestration.lib.stripe_errors import StripeSyncError
from orchestration.lib.stripe_readback import read_back_invoices
from orchestration.lib.stripe_reconcile import record_readback
from orchestration.lib.stripe_target import StripeTarget
from orchestration.local_stripe import LocalStripeServer
from tests.unit.stripe_metering import Metering
from tests.unit.stripe_outbox import Answer, Warehouse, sync, target_of


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


def test_a_readback_keeps_what_discounts_take_from_an_invoice(metering: Metering) -> None:
    metering.warehouse.add("l1")
    metering.sync()

    def discounted(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        body, status, headers = send()
        if method == "get" and "/v1/invoices?" in url:
            listed = json.loads(body)
            listed["data"][0] |= {
                "status": "open",
                "total": 97,
                "total_discount_amounts": [{"amount": amount, "discount": f"di_{amount}"} for amount in (7, 3)],
            }
            body = json.dumps(listed).encode()
        return body, status, headers

    for target, expected in (
        (metering.target, [("invoice", "draft", 100), ("invoice_item", "draft", 100)]),
        (
            target_of(metering.server, discounted),
            [("invoice", "open", 97), ("invoice_discount", "open", -10), ("invoice_item", "open", 100)],
        ),
    ):
        record_readback(metering.warehouse.opened, target)
        rows = metering.warehouse.connection.execute(
            """
            select entity, invoice_status, amount_minor
            from ops.stripe_readback
            where invoice_id = 'inv_1'
            qualify rank() over (order by read_at desc) = 1
            order by entity
            """
        ).fetchall()
        assert rows == expected
