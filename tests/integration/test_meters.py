"""From landed events through closes to a meter in Stripe, and back: what changes while the invoice is open, and after."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestration.lib.stripe_meters import MeterReport, sync_outboxes
from orchestration.lib.stripe_readback import read_back_invoices
from orchestration.lib.stripe_reconcile import record_readback
from orchestration.lib.stripe_settings import InvoiceSettings
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_target import LOCAL_KEY, StripeTarget, stripe_client
from orchestration.lib.warehouse import connect
from orchestration.local_stripe import LocalStripeServer
from tests.integration.conftest import Row, Warehouse
from tests.integration.test_close import CLOSING, build, change_seed, close, usage

SEPTEMBER_CLOSES = datetime(2026, 10, 2, 9)
STILL_OPEN = datetime(2026, 10, 3, 9)
AFTER_THE_INVOICE = datetime(2026, 10, 5)

# What a close and a sync read, and the reconciliation.
CLOSED_AND_SENT = (*CLOSING, "+stripe_invoice_items", "+fct_stripe_meter_reconciliation")


class Stripe:
    """The local Stripe server, at the time of the warehouse."""

    def __init__(self, warehouse: Warehouse, server: LocalStripeServer) -> None:
        self._warehouse = warehouse
        self._server = server
        client = stripe_client(LOCAL_KEY, server.url)
        account_id = client.v1.accounts.retrieve_current().id
        self._target = StripeTarget(client, account_id, "local", "local Stripe server")

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._server.control.now(), UTC).replace(tzinfo=None)

    def sync(self, at: datetime) -> tuple[MeterReport, SyncReport]:
        self._server.control.advance((at - self._now()).total_seconds())
        with connect(self._warehouse.settings) as connection:
            return sync_outboxes(
                connection,
                self._target,
                billing_period=None,
                progress=lambda _: None,
                settings=InvoiceSettings(meter_grace=timedelta(hours=72)),
                now=self._now,
            )

    def reconcile(self) -> list[Row]:
        with connect(self._warehouse.settings) as connection:
            record_readback(connection, self._target, self._now)
            return connection.execute(
                """
                select
                    customer_id, finding, rated_units, ledger_units, item_units, not_sent_units, sent_units, unsettled_units,
                    stripe_units
                from marts.fct_stripe_meter_reconciliation
                order by customer_id
                """
            ).fetchall()

    def items(self) -> list[str]:
        return [line_id for invoice in read_back_invoices(self._target) for line_id in invoice.line_ids]

    def total_minor(self, customer_id: str) -> int:
        return sum(
            invoice.total_minor
            for invoice in read_back_invoices(self._target)
            if invoice.metering_invoice_id.startswith(f"{customer_id}/")
        )


@pytest.fixture
def stripe(warehouse_of_copy: Warehouse, project_copy: Path, tmp_path: Path) -> Iterator[Stripe]:
    """Context tokens of three subscriptions go to a meter."""
    (project_copy / "seeds/policy/stripe_routes.csv").write_text(
        "subscription_id,billing_route\nsub_000,meter_event\nsub_001,meter_event\nsub_002,meter_event\n"
    )
    (project_copy / "seeds/policy/stripe_meters.csv").write_text(
        "charge_code,event_name,display_name,units_per_quantity\nusd-context,context_tokens,Context tokens,1\n"
    )
    with LocalStripeServer(tmp_path / "stripe.sqlite") as server:
        yield Stripe(warehouse_of_copy, server)


@pytest.mark.usefixtures("green_guards")
def test_corrections_reach_the_meter_until_the_invoice_is_final_and_invoices_afterwards(
    warehouse_of_copy: Warehouse, project_copy: Path, stripe: Stripe
) -> None:
    """Of one customer the correction is closed and sent in time, of another too late, of the third all; then a price falls."""
    warehouse = warehouse_of_copy
    customers = ["cus_000", "cus_001"]
    for number, customer in enumerate(customers):
        kept = usage(f"kept {customer}", "2026-09-10", 700, customer)
        voided = usage(f"voided {customer}", "2026-09-11", 5_000_000, customer)
        warehouse.insert_delivery(customer, 2 * number, datetime(2026, 9, 12), kept)
        warehouse.insert_delivery(customer, 2 * number + 1, datetime(2026, 9, 12), voided)
    warehouse.insert_delivery("late", 1, datetime(2026, 9, 12), usage("late", "2026-09-10", 5_000_000, "cus_002"))
    build(warehouse, SEPTEMBER_CLOSES, *CLOSED_AND_SENT)
    close(warehouse, "2026-09", customers=customers)
    events, items = stripe.sync(SEPTEMBER_CLOSES)
    assert (events.sent, events.is_clean, items.is_clean) == (2, True, True)
    billed = stripe.items()

    for number, customer in enumerate(customers):
        void = usage(f"void {customer}", "2026-10-02", 1, customer) | {
            "corrects": f"voided {customer}",
            "correction": "void",
        }
        warehouse.insert_delivery("october", number, datetime(2026, 10, 2, 12), void)
    build(warehouse, STILL_OPEN, *CLOSED_AND_SENT)
    for customer, at, sent in (("cus_000", STILL_OPEN, 1), ("cus_001", AFTER_THE_INVOICE, 0)):
        close(warehouse, "2026-09", customers=[customer], adjustments_only=True)
        events, items = stripe.sync(at)
        assert (events.sent, events.is_clean, items.is_clean) == (sent, True, True)
    corrections = dict(
        warehouse.query("select customer_id, line_id from marts.stripe_meter_events where value_units = -5000000")
    )
    added = set(stripe.items()) - set(billed)
    assert corrections["cus_001"] in added
    assert corrections["cus_000"] not in added
    close(warehouse, "2026-09", customers=["cus_002"])
    stripe.sync(AFTER_THE_INVOICE)
    units = [
        ("cus_000", "equal", 700, 700, 0, 0, 700, 0, 700),
        ("cus_001", "equal", 700, 700, -5_000_000, 0, 5_000_700, 0, 5_000_700),
        ("cus_002", "equal", 5_000_000, 5_000_000, 5_000_000, 0, 0, 0, 0),
    ]
    assert stripe.reconcile() == units

    def cheaper(row: dict[str, str]) -> None:
        if row["charge_code"] == "usd-context":
            row["unit_amount"] = "0.000001"

    change_seed(project_copy, "pricing/charge_tiers.csv", cheaper)
    build(warehouse, AFTER_THE_INVOICE, "+fct_pending_adjustments")
    reratings = warehouse.query(
        "select distinct rerating_id from marts.fct_pending_adjustments where customer_id = 'cus_002'"
    )
    (project_copy / "seeds/policy/rerating_approvals.csv").write_text(
        "rerating_id,approved_by,approved_on,reason\n"
        + "".join(f"{rerating_id},finance,2026-10-05,price list error\n" for (rerating_id,) in reratings)
    )
    build(warehouse, AFTER_THE_INVOICE, "rerating_approvals")
    close(warehouse, "2026-09", customers=["cus_002"], adjustments_only=True)
    assert warehouse.query(
        "select metered_quantity, amount_minor < 0 from ledger.billing_ledger "
        "where entry_number = 2 and customer_id = 'cus_002' and charge_code = 'usd-context'"
    ) == [(0, True)]
    stripe.sync(AFTER_THE_INVOICE)
    # Nothing of what is billed by items ends nowhere.
    assert warehouse.query("select sum(amount_minor) from ledger.billing_ledger where customer_id = 'cus_002'") == [
        (stripe.total_minor("cus_002"),)
    ]
    assert stripe.reconcile() == units
