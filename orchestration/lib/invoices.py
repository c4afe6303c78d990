"""Invoices as people read them, beside what Stripe holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from orchestration.lib.project import MeteringError
from orchestration.lib.stripe_readback import StripeInvoice
from orchestration.lib.warehouse import Warehouse, require_marts


@dataclass(frozen=True)
class InvoiceLine:
    """A line of an invoice; the amount is in major units of the invoice's currency, quantities in the metric's unit."""

    line_id: str
    line_type: str
    description: str
    metered_quantity: Decimal
    included_quantity_used: Decimal
    billable_quantity: Decimal
    amount: Decimal
    hold_reason: str | None


@dataclass(frozen=True)
class Invoice:
    """An invoice with its lines; ``total_minor`` in minor units, ``sendable_minor`` the part that is not held back."""

    invoice_id: str
    customer_id: str
    customer_name: str
    billing_period: str
    currency: str
    state: str
    document_type: str
    minor_units: int
    total_minor: int
    sendable_minor: int
    lines: tuple[InvoiceLine, ...]


def list_invoices(
    warehouse: Warehouse, *, customer_id: str | None = None, billing_period: str | None = None
) -> list[Invoice]:
    """Invoices by billing period and customer.

    Raises:
        MeteringError: there are no marts yet, or the customer is not known.
    """
    require_marts(warehouse, "fct_invoices", "fct_invoice_lines", "stripe_invoice_items", "dim_customers")
    if customer_id is not None:
        known = warehouse.execute("select 1 from marts.dim_customers where customer_id = ?", [customer_id]).fetchone()
        if known is None:
            raise MeteringError(f"Customer {customer_id!r} is not in dim_customers.")
    rows = warehouse.execute(
        """
        select
            invoices.invoice_id,
            invoices.customer_id,
            invoices.customer_name,
            invoices.billing_period,
            invoices.currency_code,
            currencies.minor_units,
            invoices.total_amount_minor,
            lines.description,
            lines.metered_quantity,
            lines.included_quantity_used,
            lines.billable_quantity,
            lines.amount,
            lines.amount_minor,
            case when lines.run_id is null then 'not_closed' else items.hold_reason end as hold_reason,
            lines.line_id,
            lines.line_type,
            invoices.invoice_state,
            invoices.document_type
        from marts.fct_invoices as invoices
        inner join seeds.currencies as currencies
            on invoices.currency_code = currencies.currency_code
        inner join marts.fct_invoice_lines as lines
            on invoices.invoice_id = lines.invoice_id
        left join marts.stripe_invoice_items as items
            on lines.line_id = items.line_id
        where
            coalesce(invoices.customer_id = $customer_id, true)
            and coalesce(invoices.billing_period = $billing_period, true)
        order by
            invoices.billing_period, invoices.customer_id, invoices.currency_code,
            case lines.line_type when 'credit' then 3 when 'commitment' then 2 else 1 end,
            lines.description, lines.service_period_start_at, lines.price_start_at, lines.line_id
        """,
        {"customer_id": customer_id, "billing_period": billing_period},
    ).fetchall()
    by_invoice: dict[str, list[tuple[object, ...]]] = {}
    for row in rows:
        by_invoice.setdefault(row[0], []).append(row)
    return [_invoice(rows) for rows in by_invoice.values()]


def _invoice(rows: Sequence[tuple[object, ...]]) -> Invoice:
    first: tuple[object, ...] = rows[0]
    # Columns as in the query of list_invoices.
    return Invoice(
        invoice_id=str(first[0]),
        customer_id=str(first[1]),
        customer_name=str(first[2]),
        billing_period=str(first[3]),
        currency=str(first[4]),
        state=str(first[16]),
        document_type=str(first[17]),
        minor_units=int(str(first[5])),
        total_minor=int(str(first[6])),
        sendable_minor=sum(int(str(row[12])) for row in rows if row[13] in (None, "zero_amount")),
        lines=tuple(
            InvoiceLine(
                line_id=str(row[14]),
                line_type=str(row[15]),
                description=str(row[7]),
                metered_quantity=Decimal(str(row[8])),
                included_quantity_used=Decimal(str(row[9])),
                billable_quantity=Decimal(str(row[10])),
                amount=Decimal(str(row[11])),
                hold_reason=None if row[13] is None else str(row[13]),
            )
            for row in rows
        ),
    )


def format_minor(amount_minor: int, minor_units: int) -> str:
    """An amount in minor units as text in major units, with exactly the currency's decimals: 1234, 2 is 12.34."""
    return f"{Decimal(amount_minor).scaleb(-minor_units):,.{minor_units}f}"


def format_quantity(quantity: Decimal) -> str:
    """A quantity without the zeros that its scale adds: 1250.500000000 is 1,250.5."""
    text = f"{quantity:,.9f}"
    return text.rstrip("0").rstrip(".")


def describe_invoice(invoice: Invoice) -> str:
    """An invoice as text: a heading, its lines, its total."""
    lines = [
        f"{invoice.invoice_id}  {invoice.customer_name}  {invoice.state} {invoice.document_type.replace('_', ' ')}"
    ]
    for line in invoice.lines:
        included = f", {format_quantity(line.included_quantity_used)} included" if line.included_quantity_used else ""
        metered = format_quantity(line.metered_quantity) if line.line_type == "usage" else ""
        held = f"  held: {line.hold_reason}" if line.hold_reason else ""
        lines.append(
            f"  {line.line_id[:10]}  {line.description:<64} {metered:>16}{included:<20} "
            f"{line.amount:>14,.{invoice.minor_units}f}{held}"
        )
    lines.append(
        f"  {'':<10}  {'total ' + invoice.currency:<64} {'':>36} "
        f"{format_minor(invoice.total_minor, invoice.minor_units):>14}"
    )
    return "\n".join(lines)


def compare_with_stripe(
    invoices: Iterable[Invoice], in_stripe: Iterable[StripeInvoice]
) -> list[tuple[Invoice, int | None, bool]]:
    """Each invoice beside its total in Stripe in minor units, and whether they agree to the minor unit.

    The total is None where Stripe has no invoice, which agrees with there being nothing that may be sent.
    """
    totals: dict[str, int] = {}
    for part in in_stripe:
        totals[part.metering_invoice_id] = totals.get(part.metering_invoice_id, 0) + part.total_minor
    return [
        (invoice, total := totals.get(invoice.invoice_id), (total or 0) == invoice.sendable_minor)
        for invoice in invoices
    ]
