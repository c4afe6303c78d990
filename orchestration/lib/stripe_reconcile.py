"""Reads Stripe back into the warehouse, which compares it with the ledger and the events."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import stripe

from orchestration.lib.invoices import format_minor
from orchestration.lib.project import Settings
from orchestration.lib.stripe_errors import StripeSyncError, describe_error
from orchestration.lib.stripe_meter_readback import ReconciledMeter, read_meter_reconciliation, read_meters
from orchestration.lib.stripe_meter_reports import record_error_reports
from orchestration.lib.stripe_parameters import INVOICE_KEY, LINE_KEY
from orchestration.lib.stripe_readback import PAGE_SIZE, item_id_of, lines_of, metadata_of
from orchestration.lib.stripe_target import StripeTarget, open_stripe_target
from orchestration.lib.warehouse import Warehouse, append_rows, connect, require_marts

COLUMNS = (
    "readback_id", "read_at", "stripe_account", "entity", "stripe_object_id", "stripe_invoice_id", "invoice_status",
    "invoice_id", "line_id", "currency", "amount_minor",
)  # fmt: skip


@dataclass(frozen=True)
class ReconciledInvoice:
    """A row of `marts.fct_stripe_reconciliation`; amounts in minor units of the currency."""

    invoice_id: str
    currency_code: str
    minor_units: int
    status: str
    findings: str | None
    rated_amount_minor: int
    ledger_amount_minor: int
    not_sent_amount_minor: int
    stripe_amount_minor: int
    difference_minor: int


@dataclass(frozen=True)
class ReconciliationReport:
    """What a reconciliation of one account found."""

    stripe_account: str
    invoices: tuple[ReconciledInvoice, ...]
    meters: tuple[ReconciledMeter, ...]
    problems: tuple[str, ...] = ()

    @property
    def red(self) -> tuple[ReconciledInvoice, ...]:
        return tuple(invoice for invoice in self.invoices if invoice.status == "red")

    @property
    def red_meters(self) -> tuple[ReconciledMeter, ...]:
        return tuple(meter for meter in self.meters if meter.status == "red")

    def describe(self) -> str:
        """A line for each invoice and meter that is not as it should be, with what was found, and the counts."""
        lines = [f"{'invoice':<32}{'events':>14}{'ledger':>14}{'not sent':>14}{'Stripe':>14}{'difference':>14}"]
        for invoice in self.invoices:
            if invoice.status == "ok":
                continue
            amounts = (
                invoice.rated_amount_minor,
                invoice.ledger_amount_minor,
                invoice.not_sent_amount_minor,
                invoice.stripe_amount_minor,
                invoice.difference_minor,
            )
            lines.append(
                f"{invoice.invoice_id:<32}"
                + "".join(f"{format_minor(amount, invoice.minor_units):>14}" for amount in amounts)
                + f"  {invoice.status} {invoice.currency_code}: {invoice.findings}"
            )
        agreeing = sum(invoice.status == "ok" for invoice in self.invoices)
        changed = sum(invoice.rated_amount_minor != invoice.ledger_amount_minor for invoice in self.invoices)
        lines.append(
            f"account {self.stripe_account}: {agreeing} of {len(self.invoices)} invoices agree with Stripe, "
            f"{len(self.red)} red; {changed} have adjustments to come"
        )
        if len(lines) == 2:
            del lines[0]
        if self.meters:
            lines += [meter.describe() for meter in self.meters if meter.finding != "equal"]
            equal = sum(meter.finding == "equal" for meter in self.meters)
            unsettled = sum(meter.finding == "not_settled" for meter in self.meters)
            lines.append(
                f"account {self.stripe_account}: {equal} of {len(self.meters)} customers' periods on meters agree with "
                f"Stripe, {unsettled} not settled, {len(self.red_meters)} red"
            )
        return "\n".join([*lines, *self.problems])


def reconcile(settings: Settings, environ: Mapping[str, str]) -> ReconciliationReport:
    """Read the Stripe that the environment names, keep what it has, and compare.

    Raises:
        StripeSyncError: Stripe cannot be read; nothing was kept.
        StripeTargetError: the Stripe settings in the environment cannot be used.
    """
    with connect(settings) as warehouse:
        require_marts(
            warehouse,
            "stripe_invoice_items",
            "stripe_meter_events",
            "fct_stripe_reconciliation",
            "fct_stripe_meter_reconciliation",
        )
        with open_stripe_target(environ, settings.stripe_state) as target:
            problems = record_readback(warehouse, target)
        return replace(read_reconciliation(warehouse, target.log_account), problems=tuple(problems))


def record_readback(
    warehouse: Warehouse,
    target: StripeTarget,
    now: Callable[[], datetime] = lambda: datetime.now(UTC).replace(tzinfo=None),
) -> list[str]:
    """Append what Stripe has now to `ops.stripe_readback` and `ops.stripe_meter_readback`, all of it or nothing.

    Before that Stripe's error reports of meters go into the log; a sentence is returned for each thing to look at.

    Invoices are those with our metadata; items those with our metadata and those on such an invoice.

    Args:
        warehouse: with the outboxes and the log.
        target: the Stripe to read.
        now: the present in naive UTC.

    Raises:
        StripeSyncError: Stripe cannot be read.
    """
    read_at = now()
    stamp = (str(uuid.uuid4()), read_at, target.log_account)
    try:
        problems = record_error_reports(warehouse, target, read_at)
        found = _read_stripe(target)
        meters = read_meters(warehouse, target, read_at)
    except stripe.StripeError as error:
        raise StripeSyncError(
            f"{target.label}: reading back failed, nothing was kept: {describe_error(error)} Run it again."
        ) from None
    rows = [dict(zip(COLUMNS, (*stamp, *row), strict=True)) for row in found]
    with warehouse.transaction():
        append_rows(warehouse, "ops.stripe_readback", rows)
        append_rows(
            warehouse,
            "ops.stripe_meter_readback",
            [dict(zip(COLUMNS[:3], stamp, strict=True)) | row for row in meters],
        )
    return problems


def read_reconciliation(warehouse: Warehouse, stripe_account: str) -> ReconciliationReport:
    """What the warehouse says of the account's last readback."""
    rows = warehouse.execute(
        """
        select
            reconciled.invoice_id, reconciled.currency_code, coalesce(currencies.minor_units, 0),
            reconciled.reconciliation_status, reconciled.findings, reconciled.rated_amount_minor,
            reconciled.ledger_amount_minor, reconciled.not_sent_amount_minor, reconciled.stripe_amount_minor,
            reconciled.difference_minor
        from marts.fct_stripe_reconciliation as reconciled
        left join seeds.currencies as currencies
            on reconciled.currency_code = currencies.currency_code
        where reconciled.stripe_account = ?
        order by reconciled.invoice_id, reconciled.currency_code
        """,
        [stripe_account],
    ).rows
    return ReconciliationReport(
        stripe_account,
        tuple(ReconciledInvoice(*row) for row in rows),
        tuple(read_meter_reconciliation(warehouse, stripe_account)),
    )


def _read_stripe(target: StripeTarget) -> list[tuple[Any, ...]]:
    """Rows from `entity` on: one for the account, one for each invoice, its discounts and each item."""
    services = target.client.v1
    rows: list[tuple[Any, ...]] = [("account", *(None,) * 7)]
    on_our_invoices = set()
    for invoice in services.invoices.list({"limit": PAGE_SIZE}).auto_paging_iter():
        invoice_id = metadata_of(invoice, INVOICE_KEY)
        if invoice_id is None:
            continue
        head = (invoice.id, invoice.status, invoice_id)
        rows.append(("invoice", invoice.id, *head, None, invoice.currency, invoice.total))
        discount = sum(taken.amount for taken in invoice.total_discount_amounts or ())
        if discount:
            rows.append(("invoice_discount", invoice.id, *head, None, invoice.currency, -discount))
        for line in lines_of(target.client, invoice):
            item_id = item_id_of(line)
            on_our_invoices.add(item_id)
            rows.append(("invoice_item", item_id, *head, metadata_of(line, LINE_KEY), line.currency, line.amount))
    # Elsewhere an item of ours is one that somebody has moved, or whose invoice was deleted.
    for item in services.invoice_items.list({"limit": PAGE_SIZE}).auto_paging_iter():
        line_id = metadata_of(item, LINE_KEY)
        if line_id is not None and item.id not in on_our_invoices:
            on_invoice = None if item.invoice is None else str(item.invoice)
            owner = (on_invoice, None, metadata_of(item, INVOICE_KEY))
            rows.append(("invoice_item", item.id, *owner, line_id, item.currency, item.amount))
    return rows
