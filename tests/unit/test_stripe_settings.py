"""How invoices are made and finalised: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import stripe

from orchestration.lib.stripe_errors import StripeSyncError
from orchestration.lib.stripe_settings import InvoiceSettings, read_invoice_settings
from orchestration.lib.stripe_sync import sync_invoice_items
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_target import StripeTarget
from orchestration.local_stripe import Fault, LocalStripeServer
from orchestration.local_stripe.control import FaultKind
from tests.unit.stripe_outbox import SECRET, FaultyHttp, Warehouse, sync, three_invoices


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
        {"METERING_STRIPE_AUTOMATIC_TAX": "yes"},
        {"METERING_STRIPE_FINALIZE": "true"},
        {"METERING_STRIPE_AUTO_ADVANCE": ""},
        {"METERING_STRIPE_CREATE_CUSTOMERS": "false"},
        {"METERING_STRIPE_UNIT_PRICES": "no"},
        {"METERING_STRIPE_METER_API": "v3"},
        {"METERING_STRIPE_METER_API": ""},
    ],
)
def test_settings_that_cannot_be_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(StripeSyncError, match="METERING_STRIPE_"):
        read_invoice_settings(environ)
