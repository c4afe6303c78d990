"""What the sync's calls to Stripe carry: the parameters of each object, and idempotency keys."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from math import ceil
from typing import cast

from stripe.params import CustomerCreateParams, InvoiceAddLinesParamsLine, InvoiceCreateParams, ProductCreateParams

from orchestration.lib.stripe_settings import InvoiceSettings
from orchestration.lib.stripe_tables import Entity, OutboxLine

CUSTOMER_KEY = "metering_customer_id"
INVOICE_KEY = "metering_invoice_id"
LINE_KEY = "metering_line_id"
PART_KEY = "metering_invoice_part"
METRIC_KEY = "metering_metric_code"


def idempotency_key(stripe_account: str, entity: Entity, entity_key: str, failures: int) -> str:
    """The key under which Stripe may see a request again: the same for an object until Stripe refuses it.

    A refusal is stored under its key for a day (Stripe API reference, "Idempotent requests"), so a request
    that was refused and then put right needs another key: `failures`, the count of failed rows in the log, is
    part of it. The rest is hashed, since keys should not carry identifiers of customers.
    """
    digest = hashlib.sha256(f"{stripe_account}\n{entity}\n{entity_key}".encode()).hexdigest()
    return f"metering-{entity}-{digest[:40]}-{failures}"


def batch_key(stripe_account: str, invoice_key: str, batch: Sequence[OutboxLine], failures: Sequence[int]) -> str:
    """The idempotency key of the call that adds these lines, of which each has failed so often, to an invoice."""
    tries = "".join(f"\n{line.line_id} {count}" for line, count in zip(batch, failures, strict=True))
    digest = hashlib.sha256(f"{stripe_account}\n{invoice_key}{tries}".encode()).hexdigest()
    return f"metering-lines-{digest[:40]}"


def customer_parameters(line: OutboxLine) -> CustomerCreateParams:
    """The customer to create for a line whose customer is not mapped."""
    parameters: CustomerCreateParams = {"metadata": {CUSTOMER_KEY: line.customer_id}}
    if line.customer_name:
        parameters["name"] = line.customer_name
    return parameters


def invoice_parameters(
    line: OutboxLine, part: str, stripe_customer_id: str, settings: InvoiceSettings
) -> InvoiceCreateParams:
    """The draft invoice of a line. It stays a draft, and takes no items but those the sync puts on it."""
    parameters: InvoiceCreateParams = {
        "customer": stripe_customer_id,
        "currency": line.currency.lower(),
        "auto_advance": False,
        "pending_invoice_items_behavior": "exclude",
        "metadata": {
            INVOICE_KEY: line.invoice_id,
            PART_KEY: part,
            "metering_billing_period": line.billing_period,
            "metering_run_id": line.run_id,
        },
    }
    if settings.days_until_due is not None:
        parameters["collection_method"] = settings.collection_method
        parameters["days_until_due"] = settings.days_until_due
    if settings.automatic_tax:
        parameters["automatic_tax"] = {"enabled": True}
    return parameters


def product_parameters(metric_code: str) -> ProductCreateParams:
    """The product of a metric, under an id that a second one cannot have (Stripe API reference, "Create a product")."""
    return {
        "id": f"metering_{hashlib.sha256(metric_code.encode()).hexdigest()[:24]}",
        "name": metric_code,
        "metadata": {METRIC_KEY: metric_code},
    }


def plain_decimal(value: Decimal) -> Decimal:
    """A decimal for the SDK, which would write a small one with an exponent; as text it goes out as it is."""
    return cast("Decimal", f"{value.normalize():f}")


def line_parameters(line: OutboxLine, product_id: str | None = None) -> InvoiceAddLinesParamsLine:
    """What a line is on its invoice: an amount, negative for a credit, or quantity and unit price on a product.

    The outbox's period ends before its end, Stripe's includes it (Stripe API reference, "Invoice Items": the
    period's end "is inclusive"); so Stripe gets the last whole second that belongs to the period.
    """
    start = int(epoch_seconds(line.service_period_start_at))
    end = max(start, ceil(epoch_seconds(line.service_period_end_at)) - 1)
    metadata = {
        LINE_KEY: line.line_id,
        INVOICE_KEY: line.invoice_id,
        "metering_billing_period": line.billing_period,
        "metering_run_id": line.run_id,
        "metering_subscription_id": line.subscription_id,
        METRIC_KEY: line.metric_code,
        "metering_charge_code": line.charge_code,
        "metering_price_version": None if line.price_version is None else str(line.price_version),
    }
    parameters: InvoiceAddLinesParamsLine = {
        "period": {"start": start, "end": end},
        "metadata": {name: value for name, value in metadata.items() if value is not None},
    }
    price = line.shown_price
    if product_id is not None and price is not None:
        quantity, unit_amount = price
        parameters["quantity_decimal"] = plain_decimal(quantity)
        parameters["price_data"] = {
            "currency": line.currency.lower(),
            "product": product_id,
            "unit_amount_decimal": plain_decimal(unit_amount),
        }
    else:
        parameters["amount"] = line.amount_minor
    if line.description:
        parameters["description"] = line.description
    return parameters


def epoch_seconds(at: datetime) -> float:
    """Seconds since 1970 of a naive UTC time."""
    return at.replace(tzinfo=UTC).timestamp()
