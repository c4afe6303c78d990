"""The reading back of invoices: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestration.lib.stripe_errors import StripeSyncError
from orchestration.lib.stripe_readback import read_back_invoices
from orchestration.lib.stripe_target import StripeTarget
from orchestration.local_stripe import LocalStripeServer
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
