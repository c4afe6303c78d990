"""Brings the quantities of the outbox mart onto Stripe's meters, each exactly once, or hands a line to invoice items.

`marts.stripe_meter_events` lists what should be on a meter. A line goes one way only: once it was tried as an event,
or as an invoice item, `ops.stripe_sync_log` says so and it stays that way, until Stripe is known not to have it.

Stripe keeps no event to be read back. It refuses an identifier that it has seen within 24 hours, and it adds up events
by customer and minute. So an event without a known outcome goes again under its identifier while Stripe remembers
that, and later the sum of its minute shows whether it arrived.

Stripe counts an event until it finalises the invoice of its service period; after that the line is an invoice item. A
negative line is an event where its meter has enough to take it from, which is known once all others are settled. An
amount without a quantity is an invoice item, unless Stripe has and rates what it adjusts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import stripe
from stripe.params.billing import MeterCreateParams, MeterEventCreateParams

from orchestration.lib.project import Progress
from orchestration.lib.stripe_errors import (
    ERROR_BODY_CHARACTERS,
    RefusedError,
    StoppedError,
    describe_error,
    error_code,
    is_refusal,
    with_backoff,
)
from orchestration.lib.stripe_lock import SyncLock, hold_sync_lock
from orchestration.lib.stripe_meter_decisions import (
    OLDEST,
    SETTLED,
    Decision,
    MeterLine,
    Period,
    Try,
    confirmed_values,
    decide,
    decide_amounts,
    decide_corrections,
    describe_unmapped_events,
    find_arrived,
    route_lines,
)
from orchestration.lib.stripe_meter_reports import REPORT, record_error_reports
from orchestration.lib.stripe_meter_stream import EVENTS_PER_CALL, MeterStream, UnknownOutcomeError, stream_event
from orchestration.lib.stripe_pace import Pace
from orchestration.lib.stripe_plan import is_unmapped
from orchestration.lib.stripe_readback import PAGE_SIZE
from orchestration.lib.stripe_run import Run
from orchestration.lib.stripe_settings import InvoiceSettings
from orchestration.lib.stripe_sync import sync_invoice_items
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_tables import Entity, Log, OutboxLine, Step, query, read_log, read_outbox
from orchestration.lib.stripe_target import StripeTarget, redact_keys
from orchestration.lib.warehouse import Warehouse

CUSTOMER_KEY = "stripe_customer_id"
VALUE_KEY = "value"

# Stripe API reference, "Create a billing meter event": "1000 calls per second in live mode, and one concurrent
# call per customer per meter". One call at a time is made here.
EVENT_CALLS_PER_SECOND = 1000

# More than these are not told apart by their sum.
MOST_UNKNOWN_IN_A_MINUTE = 10


@dataclass
class MeterReport:
    """What a run did with events; counts are of lines.

    Attributes:
        sent: events that Stripe took in this run.
        confirmed_by_lookup: events of an earlier run that turned out to have arrived.
        already_confirmed: events that the log had as confirmed, and lines without a quantity that Stripe rates with
            these.
        held: lines that wait for somebody: for a seed that lets them be events, a metric's confirmation, or a customer
            who is not mapped to one in Stripe and may not be created.
        as_items: lines that Stripe's meters cannot take, handed to the invoice items.
        waiting: lines whose outcome cannot be looked up yet.
        failed: lines that Stripe refused, or whose customer or meter was.
        unknown: events without an outcome when the run stopped.
        meters_created: meters made by this run.
        problems: a sentence for each thing that someone must look at.
    """

    sent: int = 0
    confirmed_by_lookup: int = 0
    already_confirmed: int = 0
    held: int = 0
    as_items: int = 0
    waiting: int = 0
    failed: int = 0
    unknown: int = 0
    meters_created: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Nothing was refused, is unknown or must wait. Held lines and those handed over are not a problem."""
        return not self.problems

    @property
    def has_lines(self) -> bool:
        """Whether there were lines of the route meter_event."""
        return self != MeterReport()

    def describe(self) -> str:
        return (
            f"meter events: {self.sent} sent, {self.confirmed_by_lookup} found in Stripe, "
            f"{self.already_confirmed} there already, {self.as_items} as invoice items, {self.held} held, "
            f"{self.waiting} waiting, {self.failed} failed"
        )


def sync_outboxes(
    warehouse: Warehouse,
    target: StripeTarget,
    *,
    billing_period: str | None,
    progress: Progress,
    settings: InvoiceSettings | None = None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC).replace(tzinfo=None),
    lock: SyncLock | None = None,
) -> tuple[MeterReport, SyncReport]:
    """Send both outboxes: events first, then invoice items with the lines that meters cannot take.

    Args:
        warehouse: an open warehouse with the outboxes and the log, and no transaction open.
        target: the Stripe to send to.
        billing_period: such as `2026-10`, to send only its lines; None for all.
        progress: called with a line of text as the work goes on.
        settings: how invoices are made; drafts by default.
        sleep: waits the given seconds; called when Stripe limits the rate.
        now: the present in naive UTC.
        lock: of the account, held by the caller; by default it is taken here.

    Raises:
        StripeSyncError: a table is missing, an outbox contradicts itself, or a transaction is open.
        SyncLockError: another sync of the account is at work, or has taken over from this one.
    """
    report = MeterReport()
    settings = settings or InvoiceSettings()
    with hold_sync_lock(warehouse, target.log_account) if lock is None else nullcontext(lock) as held:
        items = read_outbox(warehouse)
        run = _MeterRun(warehouse, target, items, report, settings, progress, sleep, held, now)
        run.send_events(billing_period)
        lines = route_lines(items, run.decide(), run.tries)
        return report, sync_invoice_items(
            warehouse,
            target,
            billing_period=billing_period,
            progress=progress,
            settings=settings,
            sleep=sleep,
            lock=held,
            lines=lines,
        )


def read_meter_lines(warehouse: Warehouse) -> list[MeterLine]:
    """All rows of `marts.stripe_meter_events`, ordered by line id.

    Raises:
        StripeSyncError: the table is missing, or lacks a column.
    """
    rows = query(
        warehouse,
        """
        select
            line_id, rated_line_id, customer_id, billing_period, event_name, display_name, value_units, event_at,
            hold_reason, service_period_start_at, service_period_end_at
        from marts.stripe_meter_events
        order by line_id
        """,
        [],
    )
    return [MeterLine(*row) for row in rows]


def read_tries(warehouse: Warehouse, stripe_account: str, line_id: str | None = None) -> dict[str, list[Try]]:
    """What the log has of an account's events, of one line or all, by line, the first try first.

    Raises:
        StripeSyncError: the log is missing, or lacks a column.
    """
    of_line = "" if line_id is None else "and entity_key = ?"
    rows = query(
        warehouse,
        f"""
        select
            entity_key,
            idempotency_key,
            max(currency),
            max(amount_minor),
            max(customer_id),
            count_if(step = 'intent'),
            count_if(step = 'failed' and http_status < 500),
            -- Without a status it was not the answer to a request: Stripe turned out not to have the event.
            count_if(step = 'failed' and http_status is null) > 0,
            min(case when step = 'intent' then logged_at end),
            max(case when step = 'intent' then logged_at end),
            max(case when step = 'confirmed' then logged_at end)
        from ops.stripe_sync_log
        where
            stripe_account = ?
            and entity = 'meter_event'
            {of_line}
        group by entity_key, idempotency_key
        order by min(logged_at), idempotency_key
        """,
        [stripe_account, *([] if line_id is None else [line_id])],
    )
    tries: dict[str, list[Try]] = defaultdict(list)
    for row in rows:
        tries[row[0]].append(Try(*row))
    return tries


def meter_parameters(event_name: str, display_name: str) -> MeterCreateParams:
    """The meter to create."""
    return {
        "event_name": event_name,
        "display_name": display_name,
        "default_aggregation": {"formula": "sum"},
        "customer_mapping": {"event_payload_key": CUSTOMER_KEY, "type": "by_id"},
        "value_settings": {"event_payload_key": VALUE_KEY},
    }


def meter_differences(meter: stripe.billing.Meter) -> list[str]:
    """How a meter in Stripe differs from what events need, a sentence for each field."""
    wanted = {
        "default_aggregation.formula": (meter.default_aggregation.formula, "sum"),
        "customer_mapping.event_payload_key": (meter.customer_mapping.event_payload_key, CUSTOMER_KEY),
        "value_settings.event_payload_key": (meter.value_settings.event_payload_key, VALUE_KEY),
        "status": (meter.status, "active"),
    }
    return [f"{name} is {found!r}, not {value!r}" for name, (found, value) in wanted.items() if found != value]


def event_parameters(line: MeterLine, decision: Decision, stripe_customer_id: str) -> MeterEventCreateParams:
    """The event of a line; a try without a known outcome goes again as it was."""
    tried = decision.tried
    return {
        "event_name": tried.event_name if tried is not None else str(line.event_name),
        "identifier": decision.identifier,
        "timestamp": _seconds(line.event_at),
        "payload": {
            CUSTOMER_KEY: stripe_customer_id,
            VALUE_KEY: str(tried.value_units if tried is not None else line.value_units),
        },
    }


def is_duplicate(error: stripe.StripeError) -> bool:
    """Whether Stripe refused an event because it has it: "An event already exists with identifier"."""
    return error.http_status == 400 and "already exists with identifier" in (error.user_message or "")


def plan_events(
    warehouse: Warehouse, target: StripeTarget, billing_period: str | None, settings: InvoiceSettings | None = None
) -> tuple[list[Decision], list[OutboxLine]]:
    """What a sync would do now with the lines of the route of a period, and the invoice items that follow."""
    items = read_outbox(warehouse)
    run = _MeterRun(
        warehouse,
        target,
        items,
        MeterReport(),
        settings or InvoiceSettings(),
        lambda _: None,
        time.sleep,
        # Not taken: nothing is sent.
        SyncLock(warehouse, target.log_account),
        lambda: datetime.now(UTC).replace(tzinfo=None),
    )
    decisions = run.decide()
    in_period = [found for found in decisions.values() if billing_period in (None, found.line.billing_period)]
    return in_period, route_lines(items, decisions, run.tries)


class _MeterRun(Run):
    """One run over the events: the calls to Stripe, and their rows in the log."""

    def __init__(
        self,
        warehouse: Warehouse,
        target: StripeTarget,
        items: Iterable[OutboxLine],
        report: MeterReport,
        settings: InvoiceSettings,
        progress: Progress,
        sleep: Callable[[float], None],
        lock: SyncLock,
        now: Callable[[], datetime],
    ) -> None:
        log: Log = read_log(warehouse, target.log_account)
        super().__init__(warehouse, target, settings, log, SyncReport(target.log_account), progress, sleep, lock)
        self._items = {item.line_id: item for item in items}
        # Of a line with neither quantity nor amount there is nothing to send. One without an item was closed between
        # the two reads, and is left for the next sync.
        self._lines = [
            line
            for line in read_meter_lines(warehouse)
            if line.line_id in self._items
            and (line.hold_reason != "zero_quantity" or self._items[line.line_id].amount_minor != 0)
        ]
        self._periods: dict[Period, list[MeterLine]] = defaultdict(list)
        self._rated_lines: dict[str, list[MeterLine]] = defaultdict(list)
        for line in self._lines:
            self._periods[line.period].append(line)
            self._rated_lines[line.rated_line_id].append(line)
        self._meter_report = report
        self._now = now
        self._streamed: dict[str, Decision] = {}
        self._pace = Pace(EVENT_CALLS_PER_SECOND, sleep)
        self._meters: dict[str, stripe.billing.Meter] = {}
        self.tries = self._read_tries()

    def decide(self) -> dict[str, Decision]:
        """What becomes of each line of the outbox, by line id."""
        decisions = decide_amounts(
            [decision for lines in self._periods.values() for decision in self._decide_period(lines)]
        )
        decided = {decision.line.line_id: decision for decision in decisions}
        return {line.line_id: decided[line.line_id] for line in self._lines}

    def send_events(self, billing_period: str | None) -> None:
        """Send the events of a period, or of all; what was refused or stopped the run goes into the report."""
        self._take_error_reports()
        decisions = [
            decision for decision in self.decide().values() if billing_period in (None, decision.line.billing_period)
        ]
        report = self._meter_report
        report.held = sum(decision.way == "held" for decision in decisions)
        report.already_confirmed = sum(decision.way == "done" for decision in decisions)
        for text in describe_unmapped_events(decisions):
            self._progress(text)
        self._report_orphans(billing_period)
        try:
            if any(decision.way in ("send", "look", "correction") for decision in decisions):
                self._read_meters(decisions)
                self._look(decisions)
                self._send_all(billing_period)
        except StoppedError as stopped:
            report.problems.append(f"stopped sending meter events: {stopped} Run the sync again.")
        except RefusedError as refused:
            report.problems.append(f"no meter event was sent, because {refused}")
        self.tries = self._read_tries()
        for decision in self.decide().values():
            line = decision.line
            if billing_period not in (None, line.billing_period):
                continue
            report.as_items += decision.way == "item"
            if decision.way == "wait":
                report.waiting += 1
                report.problems.append(
                    f"line {line.line_id}: its meter event waits, because it lies in the future or was tried within "
                    "the last hour. Run the sync again later."
                )
            elif decision.way == "correction":
                report.waiting += 1
                report.problems.append(
                    f"line {line.line_id}: its {line.value_units} on {line.event_name} wait, because other lines of "
                    "its customer and service period are not settled. Run the sync again, for all billing periods."
                )
            elif decision.way == "amount":
                report.waiting += 1
                report.problems.append(
                    f"line {line.line_id}: it has an amount and no quantity, and waits, because it is not settled what "
                    "Stripe has of what it adjusts. Run the sync again, for all billing periods."
                )
        self._report_overdrawn()

    def _take_error_reports(self) -> None:
        """Find out which events Stripe took and did not count; once in a run, so that none is sent twice in one."""
        try:
            self._meter_report.problems += record_error_reports(
                self._warehouse, self._target, self._now(), lambda call: self._look_up(REPORT, "all", call)
            )
        except (RefusedError, StoppedError) as error:
            self._meter_report.problems.append(f"Stripe's error reports of meters could not be read: {error}")
        self.tries = self._read_tries()

    def _decide(self, line: MeterLine) -> Decision:
        alone = self._decide_alone(line)
        if alone.way != "correction":
            return alone
        decided = self._decide_period(self._periods[line.period])
        return next(decision for decision in decided if decision.line.line_id == line.line_id)

    def _decide_period(self, lines: Iterable[MeterLine]) -> list[Decision]:
        return decide_corrections([self._decide_alone(line) for line in lines], self.tries)

    def _decide_alone(self, line: MeterLine) -> Decision:
        tries = self.tries.get(line.line_id, ())
        decision = decide(line, tries, self._is_item(line), self._now(), self._settings.meter_grace)
        is_new = decision.tried is None and decision.way in ("send", "wait", "correction")
        if is_new and not self._settings.creates_customers and is_unmapped(self._items[line.line_id], self._log):
            return replace(decision, way="held")
        return decision

    def _is_item(self, line: MeterLine) -> bool:
        """Whether a line was tried as an invoice item, or another of its rated line was and none as an event."""
        rated = self._rated_lines[line.rated_line_id]
        is_on_no_meter = not any(self.tries.get(other.line_id) for other in rated)
        return any(
            self._state("invoice_item", other.line_id).first_intent_at is not None
            for other in (rated if is_on_no_meter else [line])
        )

    def _report_overdrawn(self) -> None:
        """A correction was sent, and afterwards Stripe found invalid what it corrects."""
        for (customer_id, event_name, start_at, end_at), lines in self._periods.items():
            values = (confirmed_values(self.tries.get(line.line_id, ()), event_name) for line in lines)
            total = sum(map(sum, values))
            if total < 0 and self._now() < end_at + OLDEST:
                self._meter_report.problems.append(
                    f"meter {event_name}, {customer_id}, {start_at} to {end_at} UTC: Stripe has {total}, and bills "
                    "nothing for less than nothing. Events that are corrected were found invalid: see that they can go "
                    "again before the invoice is finalised, or credit the rest in Stripe."
                )

    def _report_orphans(self, billing_period: str | None) -> None:
        """An event may have arrived whose line left the outbox: its minute is not known any more."""
        known = {line.line_id for line in self._lines}
        for line_id, tries in self.tries.items():
            if line_id in known or not any(tried.is_unknown for tried in tries):
                continue
            item = self._items.get(line_id)
            if billing_period is None or item is None or item.billing_period == billing_period:
                self._meter_report.problems.append(
                    f"line {line_id}: was tried as a meter event without a known outcome, and is not on the route "
                    "meter_event any more. Put its subscription back in stripe_routes.csv until it is settled."
                )

    def _read_meters(self, decisions: Iterable[Decision]) -> None:
        """List the meters, and create those that lines to send need."""
        listed = self._look_up(
            "meter",
            "all",
            lambda: list(self._services.billing.meters.list({"limit": PAGE_SIZE}).auto_paging_iter()),
        )
        # An active one goes before one that was deactivated: Stripe lets its event name be used again.
        self._meters = {meter.event_name: meter for meter in sorted(listed, key=lambda meter: meter.status == "active")}
        needed = {
            decision.line.event_name: decision.line.display_name
            for decision in decisions
            if decision.way in ("send", "correction")
        }
        for name, display_name in needed.items():
            if name is None or name in self._meters:
                continue
            try:
                self._create_meter(name, display_name or name)
            except RefusedError as refused:
                self._meter_report.problems.append(str(refused))
        for name in sorted({decision.line.event_name or "" for decision in decisions} & self._meters.keys()):
            differences = meter_differences(self._meters[name])
            if differences:
                self._meter_report.problems.append(
                    f"meter {name} ({self._meters[name].id}) in Stripe: {'; '.join(differences)}. Its events were not "
                    "sent. Deactivate it in Stripe and let the sync make another, or give the charge another "
                    "event_name in stripe_meters.csv."
                )

    def _create_meter(self, event_name: str, display_name: str) -> None:
        made: list[stripe.billing.Meter] = []

        def create(key: str) -> Any:
            meter = self._services.billing.meters.create(
                meter_parameters(event_name, display_name), {"idempotency_key": key}
            )
            made.append(meter)
            return meter

        self._create("meter", event_name, self._state("meter", event_name), create)
        self._meters[event_name] = made[-1]
        self._meter_report.meters_created += 1

    def _look(self, decisions: Iterable[Decision]) -> None:
        """Find out by the sums of minutes which events of unknown outcome arrived."""
        minutes: dict[tuple[str, str, datetime], list[Decision]] = defaultdict(list)
        for decision in decisions:
            if decision.way == "look" and decision.tried is not None:
                tried = decision.tried
                minutes[tried.event_name, tried.customer_id, decision.line.event_at].append(decision)
        for (event_name, customer_id, minute), unknown in minutes.items():
            try:
                self._look_at_minute(event_name, customer_id, minute, unknown)
            except RefusedError as refused:
                self._meter_report.failed += len(unknown)
                self._meter_report.problems.append(f"meter {event_name}, minute {minute}: {refused}")

    def _look_at_minute(self, event_name: str, customer_id: str, minute: datetime, unknown: Sequence[Decision]) -> None:
        lines = ", ".join(decision.line.line_id for decision in unknown)
        meter = self._meters.get(event_name)
        if meter is None:
            raise RefusedError(f"Stripe has no meter {event_name}, so nobody knows what became of {lines}.")
        start = _seconds(minute)
        stripe_customer_id = self._ensure_customer(self._items[unknown[0].line.line_id])
        summaries = self._look_up(
            "meter_event",
            lines,
            lambda: list(
                self._services.billing.meters.event_summaries.list(
                    meter.id, {"customer": stripe_customer_id, "start_time": start, "end_time": start + 60}
                ).auto_paging_iter()
            ),
        )
        total = sum(summary.aggregated_value for summary in summaries)
        at_minute = {line.line_id for line in self._lines if line.event_at == minute}
        others = [
            tried
            for line_id in at_minute
            for tried in self.tries.get(line_id, ())
            if (tried.event_name, tried.customer_id) == (event_name, customer_id)
            and tried not in [decision.tried for decision in unknown]
        ]
        now = self._now()
        if any(now - tried.last_intent_at < SETTLED or tried.is_unknown for tried in others):
            self._meter_report.waiting += len(unknown)
            self._meter_report.problems.append(
                f"lines {lines}: another event of their minute is under way, so what became of them cannot be looked "
                "up. Run the sync again in an hour."
            )
            return
        values = [decision.tried.value_units for decision in unknown if decision.tried is not None]
        known = sum(tried.value_units for tried in others if tried.is_confirmed)
        arrived = None
        if len(values) <= MOST_UNKNOWN_IN_A_MINUTE and total == int(total):
            arrived = find_arrived(values, int(total) - known)
        if arrived is None:
            self._meter_report.failed += len(unknown)
            self._meter_report.problems.append(
                f"lines {lines}: the meter {event_name} ({meter.id}) has {total:g} of customer {stripe_customer_id} in "
                f"the minute from {minute} UTC, and neither {known} nor that with any of {values} on top. They were "
                "not sent again. Find what else is sent to that meter, and correct it there."
            )
            return
        for position, decision in enumerate(unknown):
            if position in arrived:
                self._log_event(decision, "confirmed", stripe_object_id=decision.identifier)
                self._meter_report.confirmed_by_lookup += 1
            else:
                self._log_event(decision, "failed", error_code="not_delivered")

    def _send_all(self, billing_period: str | None) -> None:
        """Send what is to be sent now, also what the minutes showed not to have arrived, and corrections last."""
        self.tries = self._read_tries()
        lines = [line for line in self._lines if billing_period in (None, line.billing_period)]
        corrections = [line for line in lines if self._decide_alone(line).way == "correction"]
        send = self._send_streamed if self._settings.meter_api == "v2" else self._send_one_by_one
        send([line for line in lines if self._decide_alone(line).way == "send"])
        self.tries = self._read_tries()
        send(corrections)

    def _send_streamed(self, lines: Sequence[MeterLine]) -> None:
        stream = MeterStream(self._client, self._record_streamed, self._now, self._sleep)
        for start in range(0, len(lines), EVENTS_PER_CALL):
            events = []
            for line in lines[start : start + EVENTS_PER_CALL]:
                decision = self._decide(line)
                if decision.way != "send":
                    continue
                try:
                    events.append(stream_event(self._event(line, decision)))
                except RefusedError as refused:
                    self._report_refused(line, str(refused))
                    continue
                self._streamed[decision.identifier] = decision
            try:
                refused_events = stream.send(events)
            except UnknownOutcomeError as unknown:
                self._meter_report.unknown += unknown.count
                raise
            for identifier, reason in refused_events.items():
                self._report_refused(self._streamed[identifier].line, f"event {identifier}: {reason}")

    def _record_streamed(self, step: Step, identifiers: Sequence[str], columns: Mapping[str, Any]) -> None:
        rows = [
            {"entity": "meter_event", "step": step, "logged_at": self._now()}
            | self._event_columns(self._streamed[identifier])
            | ({"stripe_object_id": identifier} if step == "confirmed" else {})
            | dict(columns)
            for identifier in identifiers
        ]
        self._write(rows)
        self._meter_report.sent += len(rows) if step == "confirmed" else 0

    def _send_one_by_one(self, lines: Sequence[MeterLine]) -> None:
        for line in lines:
            # A second sync may have worked on it meanwhile.
            self._refresh(line)
            decision = self._decide(line)
            if decision.way != "send":
                continue
            try:
                self._send_event(line, decision)
            except RefusedError as refused:
                self._report_refused(line, str(refused))
            if (line.value_units or 0) < 0:
                # For the corrections that come after it.
                self._refresh(line)

    def _report_refused(self, line: MeterLine, reason: str) -> None:
        self._meter_report.failed += 1
        self._meter_report.problems.append(f"line {line.line_id}: its meter event was not sent, because {reason}")

    def _refresh(self, line: MeterLine) -> None:
        self.tries[line.line_id] = self._read_tries(line.line_id).get(line.line_id, [])

    def _event(self, line: MeterLine, decision: Decision) -> MeterEventCreateParams:
        """The event of a line, whose customer and meter are there.

        Raises:
            RefusedError: they are not.
        """
        parameters = event_parameters(line, decision, self._ensure_customer(self._items[line.line_id]))
        meter = self._meters.get(parameters["event_name"])
        if meter is None or meter_differences(meter):
            raise RefusedError(f"the meter {parameters['event_name']} is missing in Stripe or differs.")
        return parameters

    def _send_event(self, line: MeterLine, decision: Decision) -> None:
        parameters = self._event(line, decision)
        self._log_event(decision, "intent")
        # An identifier holds for all its requests, and an idempotency key for one: under it Stripe would repeat a 500.
        attempt = decision.tried.intents if decision.tried is not None else 0
        key = f"{decision.identifier}.{attempt}.{self._attempt_id}"

        def create() -> stripe.billing.MeterEvent:
            self._pace.wait()
            return self._services.billing.meter_events.create(parameters, {"idempotency_key": key})

        try:
            event = with_backoff(create, self._sleep)
        except stripe.StripeError as error:
            self._take_error(decision, error)
            return
        response = event.last_response
        self._log_event(
            decision,
            "confirmed",
            stripe_object_id=event.identifier,
            request_id=None if response is None else response.request_id,
            http_status=None if response is None else response.code,
        )
        self._meter_report.sent += 1

    def _take_error(self, decision: Decision, error: stripe.StripeError) -> None:
        """What an answer other than success means for the event.

        Raises:
            RefusedError: Stripe answered with a 4xx that concerns this event.
            StoppedError: the outcome is unknown, or the key was refused.
        """
        if is_duplicate(error):
            self._log_event(
                decision,
                "confirmed",
                stripe_object_id=decision.identifier,
                request_id=error.request_id,
                http_status=error.http_status,
            )
            self._meter_report.confirmed_by_lookup += 1
            return
        described = f"event {decision.identifier}: {describe_error(error)}"
        if not is_refusal(error):
            self._meter_report.unknown += 1
            raise StoppedError(f"{described} It has no known outcome.") from None
        self._log_event(
            decision,
            "failed",
            request_id=error.request_id,
            http_status=error.http_status,
            error_code=error_code(error),
            error_body=redact_keys(error.http_body or "")[:ERROR_BODY_CHARACTERS],
        )
        if isinstance(error, stripe.AuthenticationError):
            raise StoppedError(f"{described} Check STRIPE_API_KEY.") from None
        raise RefusedError(described) from None

    def _log_event(self, decision: Decision, step: Step, **columns: Any) -> None:
        of_event = self._event_columns(decision)
        self._append("meter_event", of_event.pop("entity_key"), step, **of_event, **columns)

    def _event_columns(self, decision: Decision) -> dict[str, Any]:
        """What a row of the log says of an event."""
        line, tried = decision.line, decision.tried
        return {
            "entity_key": line.line_id,
            "idempotency_key": decision.identifier,
            "amount_minor": line.value_units if tried is None else tried.value_units,
            "currency": line.event_name if tried is None else tried.event_name,
            "customer_id": line.customer_id,
            "billing_period": line.billing_period,
        }

    def _read_tries(self, line_id: str | None = None) -> dict[str, list[Try]]:
        return read_tries(self._warehouse, self._target.log_account, line_id)

    def _append(self, entity: Entity, entity_key: str, step: Step, **columns: Any) -> None:
        super()._append(entity, entity_key, step, logged_at=self._now(), **columns)


def _seconds(at: datetime) -> int:
    """Seconds since 1970 of a naive UTC time."""
    return int(at.replace(tzinfo=UTC).timestamp())
