"""Reads invoices and their lines back from Stripe."""

from __future__ import annotations

from dataclasses import dataclass

import stripe

from orchestration.lib.stripe_errors import StripeSyncError, describe_error
from orchestration.lib.stripe_parameters import INVOICE_KEY, LINE_KEY
from orchestration.lib.stripe_target import StripeTarget

StripeObject = stripe.Customer | stripe.Product | stripe.Invoice | stripe.InvoiceItem | stripe.InvoiceLineItem
PAGE_SIZE = 100


@dataclass(frozen=True)
class StripeInvoice:
    """An invoice made by the sync, as Stripe has it. One of more than 250 lines is several of them.

    `customer_id` is Stripe's. `total_minor` is in minor units of `currency` (lower case). `line_ids` are the
    outbox's line ids in order; an item without one counts in `item_count` alone, and a line that is there
    twice is listed twice.
    """

    stripe_invoice_id: str
    metering_invoice_id: str
    customer_id: str
    currency: str
    total_minor: int
    item_count: int
    line_ids: tuple[str, ...]


def read_back_invoices(target: StripeTarget) -> list[StripeInvoice]:
    """All invoices in Stripe that the sync made, with their items, ordered by metering invoice id.

    Raises:
        StripeSyncError: Stripe cannot be read.
    """
    invoices = []
    try:
        listed_invoices = target.client.v1.invoices.list({"limit": PAGE_SIZE})
        for invoice in listed_invoices.auto_paging_iter():
            metering_invoice_id = metadata_of(invoice, INVOICE_KEY)
            if metering_invoice_id is None:
                continue
            items = lines_of(target.client, invoice)
            line_ids = (metadata_of(item, LINE_KEY) for item in items)
            invoices.append(
                StripeInvoice(
                    invoice.id,
                    metering_invoice_id,
                    str(invoice.customer),
                    invoice.currency,
                    invoice.total,
                    len(items),
                    tuple(sorted(line_id for line_id in line_ids if line_id is not None)),
                )
            )
    except stripe.StripeError as error:
        raise StripeSyncError(
            f"{target.label}: reading invoices back failed: {describe_error(error)} Run it again."
        ) from None
    return sorted(invoices, key=lambda invoice: (invoice.metering_invoice_id, invoice.stripe_invoice_id))


def list_lines(client: stripe.StripeClient, stripe_invoice_id: str) -> list[stripe.InvoiceLineItem]:
    """All lines of an invoice, in Stripe's order."""
    listed = client.v1.invoices.line_items.list(stripe_invoice_id, {"limit": PAGE_SIZE})
    return list(listed.auto_paging_iter())


def lines_of(client: stripe.StripeClient, invoice: stripe.Invoice) -> list[stripe.InvoiceLineItem]:
    """All lines of an invoice that Stripe has sent, which has the first of them."""
    return list_lines(client, invoice.id) if invoice.lines.has_more else list(invoice.lines.data)


def item_id_of(line: stripe.InvoiceLineItem) -> str:
    """The id of the invoice item behind a line, or the line's own where there is none."""
    details = None if line.parent is None else line.parent.invoice_item_details
    return line.id if details is None else details.invoice_item


def metadata_of(owner: StripeObject, name: str) -> str | None:
    """One value of an object's metadata, or None."""
    metadata = owner.metadata
    return metadata[name] if metadata is not None and name in metadata else None
