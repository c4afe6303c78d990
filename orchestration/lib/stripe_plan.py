"""Decides what a sync sends, what is done, and what changed after it was sent.

Pure: what the log and the outbox say goes in, the plan comes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestration.lib.stripe_errors import StripeSyncError
from orchestration.lib.stripe_tables import NOTHING_LOGGED, Log, LogState, OutboxLine

# Stripe API reference, "Create an invoice item": "there is a maximum of 250 items per invoice".
ITEMS_PER_INVOICE = 250

# Hold reasons that the sync itself gives. Of a line on a meter Stripe makes the amount: it is no invoice item for good.
ON_A_METER = "on_a_meter"
CUSTOMER_NOT_MAPPED = "customer_not_mapped"

# Hold reasons of lines that will not be items, so that their invoice is complete without them.
NEVER_AN_ITEM = ("zero_amount", ON_A_METER)


@dataclass(frozen=True)
class ChangedLine:
    """A line in Stripe that differs from the outbox.

    Amounts in minor units; the current ones are None when the outbox no longer has the line, or holds it, and the
    synced ones when nobody knows whether Stripe has it.
    """

    line_id: str
    synced_amount_minor: int | None
    synced_currency: str | None
    current_amount_minor: int | None
    current_currency: str | None

    def __str__(self) -> str:
        if self.synced_currency is None:
            return (
                f"line {self.line_id}: was tried without a known outcome, and has left the outbox, is held or has "
                "another customer or currency now. Look for its metering_line_id in Stripe, and delete the item if it "
                "is there."
            )
        current = "gone from the outbox or held"
        if self.current_amount_minor is not None:
            current = f"now {self.current_amount_minor} {self.current_currency}"
        return (
            f"line {self.line_id}: changed after the sync, {self.synced_amount_minor} {self.synced_currency} "
            f"in Stripe, {current} (minor units). It was not sent again; correct the draft invoice in Stripe."
        )


@dataclass(frozen=True)
class InvoiceGroup:
    """The lines to send for one invoice in Stripe, in order of their ids.

    `part` counts from 1 the invoices that an invoice of more than 250 lines becomes in Stripe.
    """

    customer_id: str
    invoice_id: str
    part: int
    lines: tuple[OutboxLine, ...]

    @property
    def key(self) -> str:
        """The invoice's key in the log."""
        return invoice_key(self.invoice_id, self.part)


@dataclass(frozen=True)
class SyncPlan:
    """What a run will do, decided before anything is sent."""

    groups: tuple[InvoiceGroup, ...]
    blocked: tuple[InvoiceGroup, ...]
    already_confirmed: int
    held: int
    changes: tuple[ChangedLine, ...]
    unmapped: Mapping[str, int]
    """How many lines are held for each customer who is in no way known in Stripe, where none may be created."""
    complete: tuple[InvoiceGroup, ...]
    """Invoices that hold nothing back: once all these lines are in Stripe, they may be finalised."""
    left_unsent: tuple[str, ...]
    """Periods before the one looked at, from the first one that was sent on, that have lines to send."""


def describe_plan(plan: SyncPlan) -> str:
    """What a sync would send, as text: each invoice, its lines with amounts in minor units, and what is not sent."""
    text = []
    for group in plan.groups:
        first = group.lines[0]
        part = f", part {group.part}" if group.part > 1 else ""
        text.append(
            f"invoice {group.invoice_id}{part}: {len(group.lines)} lines, "
            f"{sum(line.amount_minor for line in group.lines)} {first.currency} in minor units, "
            f"customer {first.stripe_customer_id or f'{group.customer_id} (created if not there)'}"
        )
        text += [f"  {line.line_id}  {line.amount_minor:>14}  {line.description or ''}" for line in group.lines]
    blocked = sum(len(group.lines) for group in plan.blocked)
    text.append(
        f"would send {sum(len(group.lines) for group in plan.groups)} lines on {len(plan.groups)} invoices; "
        f"{plan.already_confirmed} there already, {plan.held} held, {blocked} blocked"
    )
    return "\n".join([*text, *describe_unmapped(plan), *map(str, plan.changes)])


def describe_unmapped(plan: SyncPlan) -> list[str]:
    """A sentence for each customer whose lines are held because nobody in Stripe is known for them."""
    return [
        f"customer {customer_id}: {count} lines held, because METERING_STRIPE_CREATE_CUSTOMERS=0 and customers.csv has "
        "no stripe_customer_id for it"
        for customer_id, count in plan.unmapped.items()
    ]


def hold_unmapped(lines: Iterable[OutboxLine], log: Log) -> list[OutboxLine]:
    """The outbox with the lines held whose customer is neither mapped to one in Stripe nor was created there before."""
    return [
        replace(line, hold_reason=CUSTOMER_NOT_MAPPED) if line.hold_reason is None and is_unmapped(line, log) else line
        for line in lines
    ]


def is_unmapped(line: OutboxLine, log: Log) -> bool:
    """Whether nobody in Stripe is known for a line's customer."""
    customer = log.get(("customer", line.customer_id), NOTHING_LOGGED)
    return line.stripe_customer_id is None and customer.confirmed_id is None


def plan_sync(lines: Iterable[OutboxLine], log: Log, billing_period: str | None) -> SyncPlan:
    """Decide what to send, what is done, and what changed after it was sent.

    A line that changed in time zone, price version or subscription comes back under another id. Nothing new is sent for
    a customer and billing period of which a line that Stripe has, or may have, is no longer what the outbox says: it
    could be the same usage again.

    Args:
        lines: the whole outbox.
        log: the state of the account's objects.
        billing_period: the period to look at, None for all.

    Raises:
        StripeSyncError: the outbox contradicts itself, as `check_outbox` says.
    """
    every_line = list(lines)
    check_outbox(every_line)
    lines_by_id = {line.line_id: line for line in every_line}
    changes = []
    unsettled = set()
    changed_ids = set()
    for (entity, line_id), state in log.items():
        if entity != "invoice_item":
            continue
        change = find_change(line_id, state, lines_by_id.get(line_id))
        if change is not None:
            unsettled.add((state.customer_id, state.billing_period))
            changed_ids.add(line_id)
            if billing_period in (None, state.billing_period):
                changes.append(change)
    pending = []
    already_confirmed = held = 0
    for line in every_line:
        if billing_period not in (None, line.billing_period):
            continue
        state = log.get(("invoice_item", line.line_id), NOTHING_LOGGED)
        if state.confirmed_id is not None:
            already_confirmed += find_change(line.line_id, state, line) is None
        elif line.hold_reason is not None:
            held += 1
        else:
            pending.append(line)
    blocked = [
        line for line in pending if line.line_id in changed_ids or (line.customer_id, line.billing_period) in unsettled
    ]
    blocked_ids = {line.line_id for line in blocked}
    parts = assign_parts(every_line)
    in_period = [line for line in every_line if billing_period in (None, line.billing_period)]
    held_invoices = {line.invoice_id for line in in_period if line.hold_reason not in (None, *NEVER_AN_ITEM)}
    complete = [
        line
        for line in in_period
        if line.hold_reason is None
        and line.invoice_id not in held_invoices
        and (line.customer_id, line.billing_period) not in unsettled
    ]
    return SyncPlan(
        group_by_invoice((line for line in pending if line.line_id not in blocked_ids), parts),
        group_by_invoice(blocked, parts),
        already_confirmed,
        held,
        tuple(sorted(changes, key=lambda change: change.line_id)),
        Counter(line.customer_id for line in in_period if line.hold_reason == CUSTOMER_NOT_MAPPED),
        group_by_invoice(complete, parts),
        _left_unsent(every_line, log, billing_period),
    )


def _left_unsent(lines: Iterable[OutboxLine], log: Log, billing_period: str | None) -> tuple[str, ...]:
    """Earlier periods with lines that were released or closed after their period was sent, be it to meters alone. What
    was closed before any period was sent may have been billed by another system."""
    if billing_period is None:
        return ()
    sent, sendable = set(), set()
    for line in lines:
        confirmed_id = log.get(("invoice_item", line.line_id), NOTHING_LOGGED).confirmed_id
        if confirmed_id is not None or line.hold_reason == ON_A_METER:
            sent.add(line.billing_period)
        elif line.hold_reason is None:
            sendable.add(line.billing_period)
    first = min(sent, default=billing_period)
    return tuple(sorted(period for period in sendable if first <= period < billing_period))


def assign_parts(lines: Iterable[OutboxLine]) -> dict[str, int]:
    """The part of its invoice, from 1, that each line belongs to: 250 lines each, in order of the ids.

    Lines that are held back count too, so that a line's part is the same when they may be sent: an invoice's lines all
    enter the ledger together and stay.
    """
    counts: dict[str, int] = {}
    parts = {}
    for line in sorted(lines, key=lambda line: line.line_id):
        before = counts.get(line.invoice_id, 0)
        parts[line.line_id] = before // ITEMS_PER_INVOICE + 1
        counts[line.invoice_id] = before + 1
    return parts


def invoice_key(invoice_id: str, part: int) -> str:
    """The key in the log of an invoice in Stripe: the invoice's id, with the part after the first."""
    return invoice_id if part == 1 else f"{invoice_id}#{part}"


def find_change(line_id: str, state: LogState, line: OutboxLine | None) -> ChangedLine | None:
    """How a line that Stripe has, or may have, differs from its row in the outbox; None when it does not."""
    current = None if line is None or line.hold_reason is not None else line
    if state.confirmed_id is not None:
        synced = (state.confirmed_amount_minor, state.confirmed_currency)
        if current is None:
            return ChangedLine(line_id, *synced, None, None)
        if synced != (current.amount_minor, current.currency):
            return ChangedLine(line_id, *synced, current.amount_minor, current.currency)
        return None
    if state.first_intent_at is None or state.is_refused:
        return None
    if current is None or (state.customer_id, state.tried_currency) != (current.customer_id, current.currency):
        return ChangedLine(line_id, None, None, None, None)
    return None


def check_outbox(lines: Iterable[OutboxLine]) -> None:
    """Check that lines are unique, and that an invoice has one customer, period and currency.

    Raises:
        StripeSyncError: naming the line or invoice at fault.
    """
    seen: set[str] = set()
    invoices: dict[str, tuple[str, str | None, str, str]] = {}
    for line in lines:
        if line.line_id in seen:
            raise StripeSyncError(
                f"marts.stripe_invoice_items has line_id {line.line_id} more than once; nothing was sent. "
                "Run the mart's tests and repair what doubles the line."
            )
        seen.add(line.line_id)
        header = (line.customer_id, line.stripe_customer_id, line.billing_period, line.currency)
        first = invoices.setdefault(line.invoice_id, header)
        if first != header:
            raise StripeSyncError(
                f"marts.stripe_invoice_items: invoice_id {line.invoice_id} has lines with different "
                f"customer, Stripe customer, period or currency ({first} and {header}); nothing was sent. "
                "Repair what assigns lines to invoices."
            )


def group_by_invoice(lines: Iterable[OutboxLine], parts: Mapping[str, int]) -> tuple[InvoiceGroup, ...]:
    """The lines by customer, invoice and part, in order of customer id, invoice id, part and line id."""
    groups: dict[tuple[str, str, int], list[OutboxLine]] = {}
    for line in sorted(lines, key=lambda line: (line.customer_id, line.invoice_id, line.line_id)):
        groups.setdefault((line.customer_id, line.invoice_id, parts[line.line_id]), []).append(line)
    return tuple(InvoiceGroup(*owner, tuple(members)) for owner, members in groups.items())
