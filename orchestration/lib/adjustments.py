"""What has changed of closed periods, as people read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from orchestration.lib.project import MeteringError
from orchestration.lib.warehouse import Warehouse, require_marts


@dataclass(frozen=True)
class PendingAdjustment:
    """A row of ``fct_pending_adjustments``; amounts in major units of the currency."""

    rerating_id: str
    customer_id: str
    subscription_id: str
    original_billing_period: str
    description: str
    cause: str
    adjustment_status: str
    corrects_run_id: str | None
    currency: str
    billed: Decimal
    rated_now: Decimal
    amount: Decimal


def list_pending_adjustments(warehouse: Warehouse, *, customer_id: str | None = None) -> list[PendingAdjustment]:
    """Pending adjustments by customer and period.

    Raises:
        MeteringError: there are no marts yet, or the customer is not known.
    """
    require_marts(warehouse, "fct_pending_adjustments", "dim_customers")
    if customer_id is not None:
        known = warehouse.execute("select 1 from marts.dim_customers where customer_id = ?", [customer_id]).fetchone()
        if known is None:
            raise MeteringError(f"Customer {customer_id!r} is not in dim_customers.")
    rows = warehouse.execute(
        """
        select
            adjustments.rerating_id,
            adjustments.customer_id,
            adjustments.subscription_id,
            adjustments.original_billing_period,
            adjustments.description,
            adjustments.cause,
            adjustments.adjustment_status,
            adjustments.corrects_run_id,
            adjustments.currency_code,
            adjustments.ledger_amount_minor,
            adjustments.rated_amount_minor,
            adjustments.amount_minor,
            currencies.minor_units
        from marts.fct_pending_adjustments as adjustments
        inner join seeds.currencies as currencies
            on adjustments.currency_code = currencies.currency_code
        where coalesce(adjustments.customer_id = $customer_id, true)
        order by
            adjustments.customer_id, adjustments.original_billing_period, adjustments.description,
            adjustments.rated_line_id
        """,
        {"customer_id": customer_id},
    ).rows
    return [
        PendingAdjustment(*row[:9], *(Decimal(minor).scaleb(-row[12]) for minor in row[9:12]))
        for row in rows
    ]  # fmt: skip


def describe_adjustment(adjustment: PendingAdjustment) -> str:
    """An adjustment as one line of text."""
    return (
        f"{adjustment.customer_id}  {adjustment.original_billing_period}  {adjustment.description}: "
        f"{adjustment.billed} billed, {adjustment.rated_now} now, {adjustment.amount:+} {adjustment.currency}  "
        f"{adjustment.cause}, {adjustment.adjustment_status}"
    )


def rows_to_approve(adjustments: Iterable[PendingAdjustment]) -> list[str]:
    """Rows of rerating_approvals.csv that would let these re-ratings be billed, without who approves and when.

    The reason says what is approved.
    """
    totals: dict[str, tuple[PendingAdjustment, Decimal]] = {}
    for adjustment in adjustments:
        if adjustment.adjustment_status == "needs_approval":
            _, total = totals.get(adjustment.rerating_id, (adjustment, Decimal(0)))
            totals[adjustment.rerating_id] = (adjustment, total + adjustment.amount)
    return [
        f"{rerating_id},,,{adjustment.subscription_id} {adjustment.original_billing_period} "
        f"{total:+} {adjustment.currency}"
        for rerating_id, (adjustment, total) in totals.items()
    ]
