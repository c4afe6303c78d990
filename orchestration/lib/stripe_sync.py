"""Brings the rated lines of the outbox mart into Stripe as draft invoices with items, each exactly once.

`marts.stripe_invoice_items` lists what should be in Stripe. `ops.stripe_sync_log`, to which rows are only
added, lists what was tried and what came back, per Stripe account. Around every call that creates something
there are two rows for each object: an intent, durable before the call, and an outcome after it. A crash, a lost
answer or a 5xx leaves an intent unconfirmed; the next run then looks in Stripe for the object by its metadata
before it creates anything, because Stripe may have forgotten the idempotency key by that time.

Lines go to Stripe many in one call. Lines of a call without a known outcome go together again, so that the call has
the same idempotency key; a call that is refused is taken apart until the line at fault stands alone.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import ceil
from typing import Any, Literal, TypeVar, cast, get_args

import stripe
from stripe.params import CustomerCreateParams, InvoiceAddLinesParamsLine, InvoiceCreateParams, ProductCreateParams

from orchestration.lib.project import MeteringError
from orchestration.lib.stripe_lock import SyncLock, hold_sync_lock
from orchestration.lib.stripe_target import StripeTarget, redact_keys
from orchestration.lib.warehouse import MissingObjectError, OpenTransactionError, Warehouse, append_rows

T = TypeVar("T")
Entity = Literal[
    "customer", "product", "invoice", "invoice_item", "finalization", "meter", "meter_event", "meter_error_report"
]
Step = Literal["intent", "confirmed", "failed"]
CollectionMethod = Literal["charge_automatically", "send_invoice"]
MeterApi = Literal["v1", "v2"]
StripeObject = stripe.Customer | stripe.Product | stripe.Invoice | stripe.InvoiceItem | stripe.InvoiceLineItem

CUSTOMER_KEY = "metering_customer_id"
INVOICE_KEY = "metering_invoice_id"
LINE_KEY = "metering_line_id"
PART_KEY = "metering_invoice_part"
METRIC_KEY = "metering_metric_code"

# Stripe API reference, "Create an invoice item": "there is a maximum of 250 items per invoice".
ITEMS_PER_INVOICE = 250

# Hold reasons of lines that will not be items, so that their invoice is complete without them.
NEVER_AN_ITEM = ("zero_amount", "on_a_meter")

# The hold reason that the sync itself gives.
CUSTOMER_NOT_MAPPED = "customer_not_mapped"

# Stripe names no limit for "Bulk add invoice line items" but that of the invoice. This is a page of a list: what a call
# has added is read back by one more.
LINES_PER_CALL = 100

PAGE_SIZE = 100
ERROR_BODY_CHARACTERS = 4000

# Below the 35 days within which Stripe takes events at all.
MOST_METER_GRACE_HOURS = 35 * 24 - 1

# How Stripe names the line at fault among several.
NAMED_LINE = re.compile(r"lines\[(\d+)\]")

# Stripe docs, "Rate limits": back off exponentially with jitter. The SDK does not retry a 429.
RATE_LIMIT_ATTEMPTS = 6
RATE_LIMIT_SECONDS = 0.5
RATE_LIMIT_LONGEST_SECONDS = 60.0

# How far this machine's clock and Stripe's may disagree, when the creation time narrows a list.
CLOCK_SECONDS = 24 * 60 * 60


class StripeSyncError(MeteringError):
    """The sync cannot start or go on. Nothing was lost: run it again once the message's remedy is done."""


@dataclass(frozen=True)
class OutboxLine:
    """One row of `marts.stripe_invoice_items`.

    Times are naive UTC, the end exclusive. `amount_minor` counts the currency's minor units. `hold_reason` is
    None when the line may be sent; `stripe_customer_id` is None when the customer is not mapped to one in
    Stripe. `quantity` times `unit_amount_minor` is the amount, to the last digit; both are None where no one price
    made the line.
    """

    line_id: str
    invoice_id: str
    run_id: str
    customer_id: str
    customer_name: str | None
    stripe_customer_id: str | None
    billing_period: str
    service_period_start_at: datetime
    service_period_end_at: datetime
    currency: str
    amount_minor: int
    description: str | None
    subscription_id: str | None
    metric_code: str | None
    charge_code: str | None
    price_version: int | None
    hold_reason: str | None
    quantity: Decimal | None = None
    unit_amount_minor: Decimal | None = None

    @property
    def shown_price(self) -> tuple[Decimal, Decimal] | None:
        """Quantity and unit price in minor units, where Stripe would make the same amount of them."""
        if self.quantity is None or self.unit_amount_minor is None or self.metric_code is None:
            return None
        if self.quantity <= 0 or self.quantity * self.unit_amount_minor != self.amount_minor:
            return None
        return self.quantity, self.unit_amount_minor


@dataclass(frozen=True)
class LogState:
    """What the log says of one object in one account.

    `confirmed_id` is the id in Stripe, or None when nothing was confirmed; the amount (minor units) and
    currency are those confirmed, for lines only. `failures` counts failed rows; `first_intent_at` is in UTC.
    What follows is for lines only: what the line was last tried with, whether Stripe refused each try, and the
    idempotency key of the last one.
    """

    confirmed_id: str | None
    confirmed_amount_minor: int | None
    confirmed_currency: str | None
    failures: int
    first_intent_at: datetime | None
    tried_currency: str | None = None
    customer_id: str | None = None
    billing_period: str | None = None
    is_refused: bool = False
    tried_key: str | None = None

    @property
    def is_unresolved(self) -> bool:
        """Something was tried and nothing confirmed: Stripe may have the object."""
        return self.confirmed_id is None and self.first_intent_at is not None


NOTHING_LOGGED = LogState(None, None, None, 0, None)
Log = Mapping[tuple[str, str], LogState]


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
class InvoiceSettings:
    """How invoices are made in Stripe, from the environment.

    Attributes:
        collection_method: METERING_STRIPE_COLLECTION_METHOD, charge_automatically or send_invoice.
        days_until_due: METERING_STRIPE_DAYS_UNTIL_DUE, with send_invoice alone.
        automatic_tax: METERING_STRIPE_AUTOMATIC_TAX=1 lets Stripe compute taxes.
        finalizes: METERING_STRIPE_FINALIZE=1 finalises an invoice once all its lines are on it; else it stays a draft.
        auto_advance: METERING_STRIPE_AUTO_ADVANCE=1 lets Stripe collect what has been finalised.
        shows_unit_prices: METERING_STRIPE_UNIT_PRICES=0 sends amounts alone; else quantity and unit price where they
            multiply to the amount, on a product for each metric.
        creates_customers: METERING_STRIPE_CREATE_CUSTOMERS=0 holds the lines of customers who are not mapped to one in
            Stripe; else a customer is created for them.
        meter_grace: METERING_STRIPE_METER_GRACE_HOURS, how long after the end of a service period Stripe counts meter
            events for it: the account's grace period for finalising invoices.
        meter_api: METERING_STRIPE_METER_API, v1 for a call for each meter event, or v2 for the stream.
    """

    collection_method: CollectionMethod = "charge_automatically"
    days_until_due: int | None = None
    automatic_tax: bool = False
    finalizes: bool = False
    auto_advance: bool = False
    creates_customers: bool = True
    shows_unit_prices: bool = True
    meter_grace: timedelta = timedelta(hours=72)
    meter_api: MeterApi = "v1"


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


@dataclass
class SyncReport:
    """What a run did. All counts are of lines, save `finalized` and `unknown`.

    Attributes:
        stripe_account: the account's name in the log.
        created: lines created in Stripe by this run.
        confirmed_by_lookup: lines of an earlier run that were found in Stripe.
        already_confirmed: lines that the log had as confirmed and that still match.
        held: lines with a hold reason, never sent to this account.
        failed: lines refused by Stripe, or whose customer or invoice was.
        blocked: lines not sent because others of their customer and billing period have changed after they were sent.
        changed_after_sync: lines that differ from what was confirmed in amount or currency, or are gone or
            held.
        finalized: invoices finalised by this run.
        unknown: objects without an outcome when the run stopped, 0 or 1.
        problems: a sentence for each thing that someone must look at.
        changes: the lines behind `changed_after_sync`.
    """

    stripe_account: str
    created: int = 0
    confirmed_by_lookup: int = 0
    already_confirmed: int = 0
    held: int = 0
    failed: int = 0
    blocked: int = 0
    changed_after_sync: int = 0
    finalized: int = 0
    unknown: int = 0
    problems: list[str] = field(default_factory=list)
    changes: tuple[ChangedLine, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Nothing failed, changed after the sync, or has an unknown outcome. Held lines are not a problem."""
        return not self.problems


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


def sync_invoice_items(
    warehouse: Warehouse,
    target: StripeTarget,
    *,
    billing_period: str | None,
    progress: Callable[[str], None],
    settings: InvoiceSettings | None = None,
    sleep: Callable[[float], None] = time.sleep,
    lines: list[OutboxLine] | None = None,
    lock: SyncLock | None = None,
) -> SyncReport:
    """Send every line of the outbox that may be sent and is not confirmed in this account.

    Args:
        warehouse: an open warehouse with the outbox and the log, and no transaction open.
        target: the Stripe to send to.
        billing_period: such as `2026-10`, to send only its lines; None for all. Confirmed lines that are gone
            from the outbox are reported whatever the period, since the log does not know it.
        progress: called with a sentence per invoice, and per call of one that takes several.
        settings: how invoices are made; drafts by default.
        sleep: waits the given seconds; called when Stripe limits the rate.
        lines: the outbox, where meters take some of it; by default as the mart has it.
        lock: of the account, held by the caller; by default it is taken here.

    Returns:
        The report. Outcomes that stay unknown end the run early; the next run resolves them.

    Raises:
        StripeSyncError: a table is missing, the outbox contradicts itself, or a transaction is open.
        SyncLockError: another sync of the account is at work, or has taken over from this one.
    """
    try:
        with hold_sync_lock(warehouse, target.log_account) if lock is None else nullcontext(lock) as held:
            outbox = read_outbox(warehouse) if lines is None else lines
            return _sync(
                warehouse, target, outbox, billing_period, progress, settings or InvoiceSettings(), sleep, held
            )
    except OpenTransactionError as error:
        raise StripeSyncError(
            "The warehouse connection has a transaction open, so the sync log would not be durable "
            "before the call to Stripe. Commit or roll back first."
        ) from error


def _sync(
    warehouse: Warehouse,
    target: StripeTarget,
    lines: list[OutboxLine],
    billing_period: str | None,
    progress: Callable[[str], None],
    settings: InvoiceSettings,
    sleep: Callable[[float], None],
    lock: SyncLock,
) -> SyncReport:
    log = read_log(warehouse, target.log_account)
    plan = plan_sync(lines if settings.creates_customers else hold_unmapped(lines, log), log, billing_period)
    for text in describe_unmapped(plan):
        progress(text)
    report = SyncReport(
        target.log_account,
        already_confirmed=plan.already_confirmed,
        held=plan.held,
        blocked=sum(len(group.lines) for group in plan.blocked),
        changed_after_sync=len(plan.changes),
        problems=[str(change) for change in plan.changes]
        + [
            f"invoice {group.invoice_id}: {len(group.lines)} new lines were not sent, because others of its customer "
            "and billing period have changed after they were sent, and these may be the same usage."
            for group in plan.blocked
        ],
        changes=plan.changes,
    )
    run = _Run(warehouse, target, settings, log, report, progress, sleep, lock)
    if run.send(plan.groups):
        run.finalize(plan.complete)
    return report


def read_invoice_settings(environ: Mapping[str, str]) -> InvoiceSettings:
    """How invoices are made, from the METERING_STRIPE_ variables that `InvoiceSettings` names.

    Raises:
        StripeSyncError: a variable has a value that it cannot have; nothing was sent.
    """
    asked = environ.get("METERING_STRIPE_COLLECTION_METHOD", "charge_automatically")
    methods: tuple[CollectionMethod, ...] = get_args(CollectionMethod)
    method = next((method for method in methods if method == asked), None)
    days = environ.get("METERING_STRIPE_DAYS_UNTIL_DUE")
    if method is None:
        raise StripeSyncError(
            f"METERING_STRIPE_COLLECTION_METHOD is {asked!r}: set it to charge_automatically or send_invoice."
        )
    if (days is not None) is not (method == "send_invoice") or (days is not None and not days.isdecimal()):
        raise StripeSyncError(
            "METERING_STRIPE_DAYS_UNTIL_DUE goes with METERING_STRIPE_COLLECTION_METHOD=send_invoice: give a whole "
            "number of days with it, and none otherwise."
        )
    grace = environ.get("METERING_STRIPE_METER_GRACE_HOURS", "72")
    if not (grace.isascii() and grace.isdecimal() and 1 <= int(grace) <= MOST_METER_GRACE_HOURS):
        raise StripeSyncError(
            f"METERING_STRIPE_METER_GRACE_HOURS is {grace!r}: set it to the hours, from 1 to {MOST_METER_GRACE_HOURS}, "
            "after which the account finalises invoices of subscriptions (in Stripe's settings of invoices)."
        )
    asked_api = environ.get("METERING_STRIPE_METER_API", "v1")
    apis: tuple[MeterApi, ...] = get_args(MeterApi)
    meter_api = next((api for api in apis if api == asked_api), None)
    if meter_api is None:
        raise StripeSyncError(
            f"METERING_STRIPE_METER_API is {asked_api!r}: set it to v1, a call for each meter event, or v2, the stream."
        )
    return InvoiceSettings(
        collection_method=method,
        days_until_due=None if days is None else int(days),
        automatic_tax=environ.get("METERING_STRIPE_AUTOMATIC_TAX") == "1",
        finalizes=environ.get("METERING_STRIPE_FINALIZE") == "1",
        auto_advance=environ.get("METERING_STRIPE_AUTO_ADVANCE") == "1",
        creates_customers=environ.get("METERING_STRIPE_CREATE_CUSTOMERS", "1") != "0",
        shows_unit_prices=environ.get("METERING_STRIPE_UNIT_PRICES", "1") != "0",
        meter_grace=timedelta(hours=int(grace)),
        meter_api=meter_api,
    )


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


def read_outbox(warehouse: Warehouse) -> list[OutboxLine]:
    """All rows of `marts.stripe_invoice_items`, ordered by line id.

    Raises:
        StripeSyncError: the table is missing, or lacks a column.
    """
    rows = _query(
        warehouse,
        """
        select
            line_id, invoice_id, run_id, customer_id, customer_name, stripe_customer_id, billing_period,
            service_period_start_at, service_period_end_at, currency, amount_minor, description,
            subscription_id, metric_code, charge_code, price_version, hold_reason, quantity, unit_amount_minor
        from marts.stripe_invoice_items
        order by line_id
        """,
        [],
    )
    return [OutboxLine(*row) for row in rows]


def read_log(warehouse: Warehouse, stripe_account: str) -> Log:
    """The state of every object that `ops.stripe_sync_log` has for an account, by entity and entity key.

    Raises:
        StripeSyncError: the table is missing, or lacks a column.
    """
    rows = _query(
        warehouse,
        """
        select
            entity,
            entity_key,
            max_by(stripe_object_id, case when step = 'confirmed' then logged_at end),
            max_by(amount_minor, case when step = 'confirmed' then logged_at end),
            max_by(currency, case when step = 'confirmed' then logged_at end),
            count_if(step = 'failed'),
            min(case when step = 'intent' then logged_at end),
            max_by(currency, logged_at),
            max_by(customer_id, logged_at),
            max_by(billing_period, logged_at),
            -- An idempotency error says that an earlier try with other parameters did arrive.
            count_if(step = 'intent') = count_if(
                step = 'failed' and http_status < 500 and error_code is distinct from 'idempotency_error'
            ),
            max_by(idempotency_key, case when step = 'intent' then logged_at end)
        from ops.stripe_sync_log
        where stripe_account = ?
        group by entity, entity_key
        """,
        [stripe_account],
    )
    return {(row[0], row[1]): LogState(*row[2:]) for row in rows}


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
    )


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


def idempotency_key(stripe_account: str, entity: Entity, entity_key: str, failures: int) -> str:
    """The key under which Stripe may see a request again: the same for an object until Stripe refuses it.

    A refusal is stored under its key for a day (Stripe API reference, "Idempotent requests"), so a request
    that was refused and then put right needs another key: `failures`, the count of failed rows in the log, is
    part of it. The rest is hashed, since keys should not carry identifiers of customers.
    """
    digest = hashlib.sha256(f"{stripe_account}\n{entity}\n{entity_key}".encode()).hexdigest()
    return f"metering-{entity}-{digest[:40]}-{failures}"


def batch_key(stripe_account: str, batch: Sequence[OutboxLine], failures: Sequence[int]) -> str:
    """The idempotency key of the call that adds these lines, of which each has failed so often."""
    tries = "".join(f"\n{line.line_id} {count}" for line, count in zip(batch, failures, strict=True))
    return f"metering-lines-{hashlib.sha256((stripe_account + tries).encode()).hexdigest()[:40]}"


def make_batches(lines: Iterable[OutboxLine], log: Log) -> list[tuple[OutboxLine, ...]]:
    """The lines of one invoice, in calls of at most 100 lines.

    Lines that were last tried in one call stay together: should Stripe still be at it, or have done it without
    showing it yet, the same call under the same key does nothing twice.
    """
    tried_together: dict[str | None, list[OutboxLine]] = {}
    for line in lines:
        state = log.get(("invoice_item", line.line_id), NOTHING_LOGGED)
        tried_together.setdefault(state.tried_key, []).append(line)
    return [
        tuple(members[start : start + LINES_PER_CALL])
        for members in tried_together.values()
        for start in range(0, len(members), LINES_PER_CALL)
    ]


def split_refused(
    batch: tuple[OutboxLine, ...], error: stripe.StripeError
) -> tuple[tuple[OutboxLine, ...], tuple[OutboxLine, ...]]:
    """A refused call of several lines in two: the line that Stripe names and the others, or else both halves."""
    named = NAMED_LINE.match(str(getattr(error, "param", None) or ""))
    if named is not None and int(named[1]) < len(batch):
        at = int(named[1])
        return batch[:at] + batch[at + 1 :], batch[at : at + 1]
    half = len(batch) // 2
    return batch[:half], batch[half:]


def is_about_a_line(error: stripe.StripeError) -> bool:
    """Whether fewer lines in a call might help: not when the invoice takes none, or the key was used before."""
    return error.http_status not in (403, 404) and error_code(error) not in (
        "invoice_not_editable",
        "idempotency_error",
    )


def customer_parameters(line: OutboxLine) -> CustomerCreateParams:
    """The customer to create for a line whose customer is not mapped."""
    parameters: CustomerCreateParams = {"metadata": {CUSTOMER_KEY: line.customer_id}}
    if line.customer_name:
        parameters["name"] = line.customer_name
    return parameters


def invoice_parameters(
    line: OutboxLine, part: int, stripe_customer_id: str, settings: InvoiceSettings
) -> InvoiceCreateParams:
    """The draft invoice of a line. It stays a draft, and takes no items but those the sync puts on it."""
    parameters: InvoiceCreateParams = {
        "customer": stripe_customer_id,
        "currency": line.currency.lower(),
        "auto_advance": False,
        "pending_invoice_items_behavior": "exclude",
        "metadata": {
            INVOICE_KEY: line.invoice_id,
            PART_KEY: str(part),
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
    start = int(_epoch_seconds(line.service_period_start_at))
    end = max(start, ceil(_epoch_seconds(line.service_period_end_at)) - 1)
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


class _RefusedError(Exception):
    """Stripe refused an object, so that what depends on it cannot be sent either."""


class _RefusedCallError(_RefusedError):
    """Stripe refused a call that creates something; `error` is its answer."""

    def __init__(self, message: str, error: stripe.StripeError) -> None:
        super().__init__(message)
        self.error = error


class _StoppedError(Exception):
    """The run must end: an outcome is unknown, or no request can succeed."""


class _Run:
    """One run of the sync: the calls to Stripe, and their rows in the log."""

    def __init__(
        self,
        warehouse: Warehouse,
        target: StripeTarget,
        settings: InvoiceSettings,
        log: Log,
        report: SyncReport,
        progress: Callable[[str], None],
        sleep: Callable[[float], None],
        lock: SyncLock,
    ) -> None:
        self._warehouse = warehouse
        self._lock = lock
        self._target = target
        self._client = target.client
        self._services = target.client.v1
        self._settings = settings
        self._log = log
        self._confirmed: dict[tuple[Entity, str], str] = {}
        self._report = report
        self._progress = progress
        self._sleep = sleep
        self._attempt_id = str(uuid.uuid4())
        self._customers: dict[str, str | None] = {}
        self._products: dict[str, str | None] = {}

    def send(self, groups: tuple[InvoiceGroup, ...]) -> bool:
        """Send the groups in order; refusals go into the report, and so does what ends the run early.

        Returns:
            Whether the run came to its end.
        """
        for number, group in enumerate(groups, start=1):
            first = group.lines[0]
            self._progress(
                f"invoice {number}/{len(groups)} {group.customer_id} {first.billing_period} "
                f"{first.currency}: {len(group.lines)} lines"
            )
            try:
                self._send_group(group)
            except _RefusedError as refused:
                self._report.failed += len(group.lines)
                self._report.problems.append(
                    f"invoice {group.invoice_id}: {len(group.lines)} lines were not sent, because {refused}"
                )
            except _StoppedError as stopped:
                self._report.problems.append(
                    f"stopped at invoice {number} of {len(groups)} ({group.invoice_id}): {stopped} "
                    "Run the sync again: it looks in Stripe first, and sends what is missing."
                )
                return False
        return True

    def finalize(self, groups: tuple[InvoiceGroup, ...]) -> None:
        """Finalise, where the settings say so, the invoices of which all lines are in Stripe."""
        for group in groups if self._settings.finalizes else ():
            invoice_id = self._confirmed_id("invoice", group.key)
            if invoice_id is None or self._confirmed_id("finalization", group.key) is not None:
                continue
            if any(self._confirmed_id("invoice_item", line.line_id) is None for line in group.lines):
                continue
            try:
                self._finalize_invoice(group, invoice_id)
            except _RefusedError as refused:
                self._report.problems.append(f"invoice {group.invoice_id} was not finalised, because {refused}")
            except _StoppedError as stopped:
                self._report.problems.append(
                    f"stopped while finalising invoice {group.invoice_id}: {stopped} Run the sync again."
                )
                return

    def _finalize_invoice(self, group: InvoiceGroup, invoice_id: str) -> None:
        state = self._state("finalization", group.key)
        if state.first_intent_at is not None:
            invoice = self._look_up("finalization", group.key, lambda: self._services.invoices.retrieve(invoice_id))
            if invoice.status != "draft":
                self._append("finalization", group.key, "confirmed", stripe_object_id=invoice_id)
                self._report.finalized += 1
                return
        self._create(
            "finalization",
            group.key,
            state,
            lambda key: self._services.invoices.finalize_invoice(
                invoice_id, {"auto_advance": self._settings.auto_advance}, {"idempotency_key": key}
            ),
        )
        self._report.finalized += 1

    def _confirmed_id(self, entity: Entity, entity_key: str) -> str | None:
        """The id in Stripe that the log had before the run, or has from it."""
        return self._confirmed.get((entity, entity_key)) or self._state(entity, entity_key).confirmed_id

    def _send_group(self, group: InvoiceGroup) -> None:
        customer_id = self._ensure_customer(group.lines[0])
        invoice_id, is_new = self._ensure_invoice(group, customer_id)
        waiting = list(group.lines)
        if not is_new and any(self._state("invoice_item", line.line_id).is_unresolved for line in waiting):
            waiting = self._confirm_found(invoice_id, waiting)
        sent = len(group.lines) - len(waiting)
        for batch in make_batches(waiting, self._log):
            self._send_batch(group, batch, invoice_id, {})
            sent += len(batch)
            if sent < len(group.lines):
                self._progress(f"invoice {group.invoice_id}: {sent} of {len(group.lines)} lines")

    def _confirm_found(self, stripe_invoice_id: str, lines: Sequence[OutboxLine]) -> list[OutboxLine]:
        """Record which of the lines are on the invoice, and return the others."""
        in_stripe = self._look_up("invoice", stripe_invoice_id, lambda: list_lines(self._client, stripe_invoice_id))
        found = self._confirm(lines, in_stripe)
        self._report.confirmed_by_lookup += len(found)
        return [line for line in lines if line.line_id not in found]

    def _confirm(
        self, lines: Iterable[OutboxLine], in_stripe: Iterable[stripe.InvoiceLineItem], **columns: Any
    ) -> set[str]:
        """Record the lines that Stripe has, with the amounts that it has; their ids."""
        # The oldest, should a line be there twice: Stripe lists what was added to an invoice in that order.
        found: dict[str | None, stripe.InvoiceLineItem] = {}
        for item in in_stripe:
            found.setdefault(metadata_of(item, LINE_KEY), item)
        present = [(line, found[line.line_id]) for line in lines if line.line_id in found]
        self._write(
            [
                {
                    "entity": "invoice_item",
                    "step": "confirmed",
                    **line_columns(line),
                    "stripe_object_id": item_id_of(item),
                    "amount_minor": item.amount,
                    "currency": item.currency.upper(),
                    **columns,
                }
                for line, item in present
            ]
        )
        for line, item in present:
            self._report_difference(line, item)
        return {line.line_id for line, _ in present}

    def _send_batch(
        self, group: InvoiceGroup, batch: tuple[OutboxLine, ...], invoice_id: str, refused: dict[str, int]
    ) -> None:
        """Add lines in one call; a refused call is taken apart. `refused` counts this run's refusals by line id."""
        failures = [self._state("invoice_item", line.line_id).failures + refused.get(line.line_id, 0) for line in batch]
        key = batch_key(self._target.log_account, batch, failures)
        lines = [line_parameters(line, self._ensure_product(line)) for line in batch]
        name = f"invoice_item {batch[0].line_id}"
        if len(batch) > 1:
            name = f"invoice {group.invoice_id}: a call of {len(batch)} lines from {batch[0].line_id} on"
        try:
            invoice = self._attempt(
                name,
                [("invoice_item", line_columns(line)) for line in batch],
                key,
                lambda: self._services.invoices.add_lines(invoice_id, {"lines": lines}, {"idempotency_key": key}),
            )
        except _RefusedCallError as refusal:
            if len(batch) == 1 or not is_about_a_line(refusal.error):
                self._report.failed += len(batch)
                self._report.problems.append(str(refusal))
                return
            # Stripe does not say that it adds all lines or none, so what it may have added is not sent again.
            missing = self._confirm_found(invoice_id, batch)
            refused = refused | {line.line_id: refused.get(line.line_id, 0) + 1 for line in missing}
            for part in split_refused(tuple(missing), refusal.error) if len(missing) == len(batch) else (missing,):
                if part:
                    self._send_batch(group, tuple(part), invoice_id, refused)
            return
        in_stripe = self._look_up("invoice", invoice_id, lambda: lines_of(self._client, invoice))
        response = invoice.last_response
        answer = {} if response is None else {"request_id": response.request_id, "http_status": response.code}
        added = self._confirm(batch, in_stripe, idempotency_key=key, **answer)
        self._report.created += len(added)
        if len(added) < len(batch):
            self._report.unknown += 1
            raise _StoppedError(f"{name}: Stripe has taken it (idempotency key {key}), and does not show every line.")

    def _report_difference(self, line: OutboxLine, item: stripe.InvoiceLineItem) -> None:
        """A line found in Stripe may have been sent with another amount than the outbox now has."""
        in_stripe = LogState(item_id_of(item), item.amount, item.currency.upper(), 0, None)
        change = find_change(line.line_id, in_stripe, line)
        if change is not None:
            self._report.changed_after_sync += 1
            self._report.changes += (change,)
            self._report.problems.append(str(change))

    def _ensure_customer(self, line: OutboxLine) -> str:
        """The customer's id in Stripe: mapped, confirmed in the log, found in Stripe, or created."""
        if line.stripe_customer_id is not None:
            return line.stripe_customer_id
        if line.customer_id not in self._customers:
            self._customers[line.customer_id] = None
            self._customers[line.customer_id] = self._find_or_create_customer(line)
        customer_id = self._customers[line.customer_id]
        if customer_id is None:
            raise _RefusedError(f"customer {line.customer_id} was refused earlier in this run.")
        return customer_id

    def _find_or_create_customer(self, line: OutboxLine) -> str:
        state = self._state("customer", line.customer_id)
        if state.confirmed_id is not None:
            return state.confirmed_id
        if not self._settings.creates_customers:
            raise _RefusedError(
                f"customer {line.customer_id} has no stripe_customer_id in customers.csv, and "
                "METERING_STRIPE_CREATE_CUSTOMERS=0."
            )
        if state.first_intent_at is not None:
            since = int(_epoch_seconds(state.first_intent_at)) - CLOCK_SECONDS
            listed = self._look_up(
                "customer",
                line.customer_id,
                lambda: list(
                    self._services.customers.list({"created": {"gte": since}, "limit": PAGE_SIZE}).auto_paging_iter()
                ),
            )
            for customer in listed:
                if metadata_of(customer, CUSTOMER_KEY) == line.customer_id:
                    self._append("customer", line.customer_id, "confirmed", stripe_object_id=customer.id)
                    return customer.id
        parameters = customer_parameters(line)
        return self._create(
            "customer",
            line.customer_id,
            state,
            lambda key: self._services.customers.create(parameters, {"idempotency_key": key}),
        )

    def _ensure_product(self, line: OutboxLine) -> str | None:
        """The product of a line's metric in Stripe, made where it is missing; None where the amount is to be shown."""
        if not self._settings.shows_unit_prices or line.metric_code is None or line.shown_price is None:
            return None
        if line.metric_code not in self._products:
            try:
                self._products[line.metric_code] = self._find_or_create_product(line.metric_code)
            except _RefusedError as refused:
                self._products[line.metric_code] = None
                self._report.problems.append(f"lines of metric {line.metric_code} show their amount alone: {refused}")
        return self._products[line.metric_code]

    def _find_or_create_product(self, metric_code: str) -> str:
        state = self._state("product", metric_code)
        if state.confirmed_id is not None:
            return state.confirmed_id
        parameters = product_parameters(metric_code)
        try:
            return self._create(
                "product",
                metric_code,
                state,
                lambda key: self._services.products.create(parameters, {"idempotency_key": key}),
            )
        except _RefusedCallError as refused:
            if refused.error.code != "resource_already_exists":
                raise
            self._append("product", metric_code, "confirmed", stripe_object_id=parameters["id"])
            return parameters["id"]

    def _ensure_invoice(self, group: InvoiceGroup, stripe_customer_id: str) -> tuple[str, bool]:
        """The draft's id in Stripe, and whether this run created it, so that it can have no items yet."""
        line = group.lines[0]
        state = self._state("invoice", group.key)
        if state.confirmed_id is not None:
            return state.confirmed_id, False
        if state.first_intent_at is not None:
            listed = self._look_up(
                "invoice",
                group.key,
                lambda: list(
                    self._services.invoices.list(
                        {"customer": stripe_customer_id, "limit": PAGE_SIZE}
                    ).auto_paging_iter()
                ),
            )
            for invoice in listed:
                part = metadata_of(invoice, PART_KEY) or "1"
                if (metadata_of(invoice, INVOICE_KEY), part) == (group.invoice_id, str(group.part)):
                    self._append("invoice", group.key, "confirmed", stripe_object_id=invoice.id)
                    return invoice.id, False
        parameters = invoice_parameters(line, group.part, stripe_customer_id, self._settings)
        invoice_id = self._create(
            "invoice",
            group.key,
            state,
            lambda key: self._services.invoices.create(parameters, {"idempotency_key": key}),
        )
        return invoice_id, True

    def _state(self, entity: Entity, entity_key: str) -> LogState:
        return self._log.get((entity, entity_key), NOTHING_LOGGED)

    def _look_up(self, entity: Entity, entity_key: str, call: Callable[[], T]) -> T:
        """Read from Stripe. What was looked for stays as it is in the log, whatever happens."""
        try:
            return with_backoff(call, self._sleep)
        except stripe.StripeError as error:
            if is_refusal(error) and not isinstance(error, stripe.AuthenticationError):
                raise _RefusedError(f"looking for {entity} {entity_key} failed: {describe_error(error)}") from None
            self._report.unknown += 1
            raise _StoppedError(f"looking for {entity} {entity_key} failed: {describe_error(error)}") from None

    def _create(self, entity: Entity, entity_key: str, state: LogState, call: Callable[[str], StripeObject]) -> str:
        """Create one object between its intent and its outcome, and return its id in Stripe.

        Raises:
            _RefusedError: Stripe answered with a 4xx that concerns this object.
            _StoppedError: the outcome is unknown, or the key was refused.
        """
        key = idempotency_key(self._target.log_account, entity, entity_key, state.failures)
        created = self._attempt(
            f"{entity} {entity_key}", [(entity, {"entity_key": entity_key})], key, lambda: call(key)
        )
        response = created.last_response
        self._append(
            entity,
            entity_key,
            "confirmed",
            idempotency_key=key,
            stripe_object_id=created.id,
            request_id=None if response is None else response.request_id,
            http_status=None if response is None else response.code,
        )
        return created.id

    def _attempt(
        self, name: str, subjects: Sequence[tuple[Entity, Mapping[str, Any]]], key: str, call: Callable[[], T]
    ) -> T:
        """Make a call that creates something, with the intents before it and, unless it succeeds, the outcomes after.

        Args:
            name: of what is created, for people.
            subjects: what is created, with the columns of the log that do not depend on the outcome.
            key: the idempotency key.
            call: the call.

        Raises:
            _RefusedError: Stripe answered with a 4xx that concerns these objects.
            _StoppedError: the outcome is unknown, or the key was refused.
        """
        self._write([{"entity": entity, "step": "intent", "idempotency_key": key, **of} for entity, of in subjects])
        try:
            return with_backoff(call, self._sleep)
        except stripe.StripeError as error:
            if is_refusal(error) or is_stored(error):
                self._write(
                    [
                        {
                            "entity": entity,
                            "step": "failed",
                            "idempotency_key": key,
                            "request_id": error.request_id,
                            "http_status": error.http_status,
                            "error_code": error_code(error),
                            "error_body": redact_keys(error.http_body or "")[:ERROR_BODY_CHARACTERS],
                            **of,
                        }
                        for entity, of in subjects
                    ]
                )
            if not is_refusal(error):
                self._report.unknown += 1
                raise _StoppedError(
                    f"{name} has no known outcome (idempotency key {key}): {describe_error(error)}"
                ) from None
            message = f"{name} was refused (idempotency key {key}): {describe_error(error)}"
            if isinstance(error, stripe.AuthenticationError):
                self._report.failed += sum(entity == "invoice_item" for entity, _ in subjects)
                raise _StoppedError(f"{message} Check STRIPE_API_KEY.") from None
            raise _RefusedCallError(message, error) from None

    def _append(self, entity: Entity, entity_key: str, step: Step, **columns: Any) -> None:
        """Add a row to the log and commit it."""
        self._write([{"entity": entity, "entity_key": entity_key, "step": step, **columns}])

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows with the same columns to the log, and commit them together; intents only while the lock is held."""
        if not rows:
            return
        stamp: dict[str, object] = {
            "attempt_id": self._attempt_id,
            "logged_at": datetime.now(UTC).replace(tzinfo=None),
            "stripe_account": self._target.log_account,
        }
        for row in rows:
            if row["step"] == "confirmed":
                self._confirmed[row["entity"], row["entity_key"]] = str(row["stripe_object_id"])
        with self._warehouse.transaction():
            if rows[0]["step"] == "intent":
                self._lock.renew()
            append_rows(self._warehouse, "ops.stripe_sync_log", [stamp | dict(row) for row in rows])


def line_columns(line: OutboxLine) -> dict[str, Any]:
    """What a row of the log says of a line that is tried."""
    return {
        "entity_key": line.line_id,
        "amount_minor": line.amount_minor,
        "currency": line.currency,
        "customer_id": line.customer_id,
        "billing_period": line.billing_period,
    }


def with_backoff(call: Callable[[], T], sleep: Callable[[float], None]) -> T:
    """The result of the call, tried again while Stripe limits the rate, up to six times in all.

    The SDK tries conflicts, server errors and lost connections again by itself, and not a 429.

    The wait is Stripe's Retry-After in seconds where given, else grows from half a second, with jitter. When
    Stripe asks for more than a minute, the call is not tried again.

    Raises:
        stripe.StripeError: from the last try.
    """
    for attempt in range(1, RATE_LIMIT_ATTEMPTS):
        try:
            return call()
        except stripe.RateLimitError as error:
            headers = error.headers or {}
            if headers.get("Stripe-Should-Retry") == "false":
                raise
            asked = headers.get("Retry-After", "")
            wait = RATE_LIMIT_SECONDS * 2 ** (attempt - 1) * random.uniform(1, 1.5)
            if asked.isascii() and asked.isdigit():
                wait = float(asked)
            if wait > RATE_LIMIT_LONGEST_SECONDS:
                raise
            sleep(wait)
    return call()


def is_refusal(error: stripe.StripeError) -> bool:
    """Whether Stripe said no for good: a 4xx other than a conflict (409) and a rate limit (429).

    Anything else, also no answer at all, leaves open whether Stripe did what was asked.
    """
    if isinstance(error, stripe.RateLimitError) or error.http_status is None:
        return False
    return 400 <= error.http_status < 500 and error.http_status != 409


def is_stored(error: stripe.StripeError) -> bool:
    """Whether the answer is one that Stripe had stored under the idempotency key.

    Stripe also stores a 500 and repeats it for a day (Stripe API reference, "Idempotent requests"). The first
    execution is over then, so the next run can look for its result and, finding none, use another key.
    """
    return (error.headers or {}).get("Idempotent-Replayed") == "true"


def error_code(error: stripe.StripeError) -> str | None:
    """Stripe's code for the error, or its type where it has no code."""
    if error.code is not None:
        return error.code
    body = error.json_body
    details = body.get("error") if isinstance(body, dict) else None
    return str(details["type"]) if isinstance(details, dict) and "type" in details else None


def describe_error(error: stripe.StripeError) -> str:
    """The error for people, without keys: status, code, message and request id."""
    status = f"HTTP {error.http_status}" if error.http_status is not None else "no answer"
    code = error_code(error)
    request = f" [{error.request_id}]" if error.request_id else ""
    message = redact_keys(error.user_message or type(error).__name__)
    return f"{status}{f' {code}' if code else ''}: {message}{request}"


def metadata_of(owner: StripeObject, name: str) -> str | None:
    """One value of an object's metadata, or None."""
    metadata = owner.metadata
    return metadata[name] if metadata is not None and name in metadata else None


def _epoch_seconds(at: datetime) -> float:
    """Seconds since 1970 of a naive UTC time."""
    return at.replace(tzinfo=UTC).timestamp()


def _query(warehouse: Warehouse, statement: str, values: list[str]) -> list[tuple[Any, ...]]:
    try:
        return warehouse.execute(statement, values).rows
    except MissingObjectError as error:
        raise StripeSyncError(
            f"The warehouse lacks what the sync reads ({str(error).splitlines()[0]}). "
            "Run `dbt build` on it first: that makes the outbox and the sync log."
        ) from error
