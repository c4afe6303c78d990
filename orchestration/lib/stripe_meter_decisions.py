"""Decides what becomes of a line of the route meter_event: an event, an invoice item, or something to wait for.

Pure: what the log and the outbox say goes in, decisions come out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import combinations
from typing import Literal

from orchestration.lib.stripe_plan import ON_A_METER
from orchestration.lib.stripe_tables import OutboxLine

# A correction is decided when the others of its customer, meter and service period are settled, an amount without a
# quantity when the others of its rated line are.
Way = Literal["send", "look", "wait", "item", "done", "held", "correction", "amount"]
Period = tuple[str, str | None, datetime, datetime]

# Stripe API reference, "Create a billing meter event": within the past 35 calendar days or up to 5 minutes ahead.
# An hour is left for retries and for clocks that disagree.
OLDEST = timedelta(days=35) - timedelta(hours=1)
FUTURE = timedelta(minutes=4)
# Of the time until an invoice is finalised; left for retries, for Stripe to take in what it got, and for clocks that
# disagree.
BEFORE_FINALIZATION = timedelta(minutes=15)
# As above: identifiers are unique "within a rolling period of at least 24 hours".
REMEMBERED = timedelta(hours=23)
# Sums of events are eventually consistent; nothing is concluded from one that may lack what was sent within an hour.
SETTLED = timedelta(hours=1)


@dataclass(frozen=True)
class MeterLine:
    """One row of `marts.stripe_meter_events`; times in naive UTC, `value_units` None where it cannot be sent.

    A line and its adjustments share their `rated_line_id`.
    """

    line_id: str
    rated_line_id: str
    customer_id: str
    billing_period: str
    event_name: str | None
    display_name: str | None
    value_units: int | None
    event_at: datetime
    hold_reason: str | None
    service_period_start_at: datetime
    service_period_end_at: datetime

    @property
    def period(self) -> Period:
        """What Stripe bills as one quantity."""
        return self.customer_id, self.event_name, self.service_period_start_at, self.service_period_end_at


@dataclass(frozen=True)
class Try:
    """What the log says of one identifier of a line; `refusals` counts 4xx answers, times are naive UTC.

    `is_undone` says that Stripe turned out not to have the event, although it may have taken it at first.
    """

    line_id: str
    identifier: str
    event_name: str
    value_units: int
    customer_id: str
    intents: int
    refusals: int
    is_undone: bool
    first_intent_at: datetime
    last_intent_at: datetime
    confirmed_at: datetime | None

    @property
    def is_confirmed(self) -> bool:
        return self.confirmed_at is not None and not self.is_undone

    @property
    def is_unknown(self) -> bool:
        """Stripe may have the event."""
        return self.confirmed_at is None and not self.is_undone and self.intents > self.refusals


Tries = Mapping[str, Sequence[Try]]


@dataclass(frozen=True)
class Decision:
    """What becomes of a line now. `tried` is the try without a known outcome that it is about."""

    line: MeterLine
    way: Way
    identifier: str
    tried: Try | None = None


def decide(line: MeterLine, tries: Sequence[Try], is_item: bool, now: datetime, grace: timedelta) -> Decision:
    """What becomes of a line, seen alone.

    `decide_corrections` goes on with a negative one, `decide_amounts` with one that has no quantity.

    Args:
        line: the line.
        tries: what the log has of it as an event.
        is_item: whether it was tried as an invoice item, or what it adjusts was; it is one as well then.
        now: naive UTC.
        grace: how long after the end of a service period Stripe counts events for it.
    """
    identifier = f"{line.line_id}-{len(tries)}"
    is_late = now - OLDEST > line.event_at or now > line.service_period_end_at + grace - BEFORE_FINALIZATION
    if any(tried.is_confirmed for tried in tries):
        return Decision(line, "done", identifier)
    for tried in tries:
        if not tried.is_unknown:
            continue
        if not is_late and line.event_at <= now + FUTURE and now - tried.first_intent_at < REMEMBERED:
            return Decision(line, "send", tried.identifier, tried)
        way: Way = "look" if now - tried.last_intent_at >= SETTLED else "wait"
        return Decision(line, way, tried.identifier, tried)
    if line.hold_reason == "metric_not_confirmed":
        return Decision(line, "held", identifier)
    if is_item:
        return Decision(line, "item", identifier)
    if line.hold_reason == "zero_quantity":
        return Decision(line, "amount", identifier)
    if is_late:
        return Decision(line, "item", identifier)
    if line.hold_reason is not None or line.value_units is None:
        # There is time to give its charge a meter, or units that fit.
        return Decision(line, "held", identifier)
    if line.event_at > now + FUTURE:
        return Decision(line, "wait", identifier)
    return Decision(line, "correction" if line.value_units < 0 else "send", identifier)


def decide_corrections(decisions: Sequence[Decision], tries: Tries) -> list[Decision]:
    """Decide the corrections among all lines of a customer, meter and service period, in their order.

    A correction waits for the lines that may still go to the meter, or have no known outcome. Then it is sent where
    what Stripe has confirmed is enough to take it from, both in the service period and in the line's own minute, of
    which Stripe does not say whether it shows less than nothing. Else it is an invoice item, as what it corrects may
    be.
    """
    if any(decision.way in ("send", "look", "wait") for decision in decisions):
        return list(decisions)
    left: dict[datetime, int] = defaultdict(int)
    for decision in decisions:
        line = decision.line
        left[line.event_at] += sum(confirmed_values(tries.get(line.line_id, ()), line.event_name))
    left_after_sending = left.copy()
    decided = []
    for decision in decisions:
        if decision.way == "correction":
            minute, value = decision.line.event_at, decision.line.value_units or 0
            if min(left[minute], sum(left.values())) + value < 0:
                decision = replace(decision, way="item")
            elif min(left_after_sending[minute], sum(left_after_sending.values())) + value >= 0:
                decision = replace(decision, way="send")
                left_after_sending[minute] += value
        decided.append(decision)
    return decided


def decide_amounts(decisions: Sequence[Decision]) -> list[Decision]:
    """Decide the lines without a quantity, as a new price makes them, after all others.

    What a meter has of a rated line, Stripe rates, at Stripe's own price. Where it has nothing, the rated line is
    billed with the amounts that we rate, this one among them.
    """
    others: dict[str, set[Way]] = defaultdict(set)
    for decision in decisions:
        others[decision.line.rated_line_id].add(decision.way)
    decided = []
    for decision in decisions:
        ways = others[decision.line.rated_line_id]
        if decision.way == "amount":
            if "done" in ways:
                decision = replace(decision, way="done")
            elif "held" in ways:
                decision = replace(decision, way="held")
            elif not ways & {"send", "look", "wait", "correction"}:
                decision = replace(decision, way="item")
        decided.append(decision)
    return decided


def confirmed_values(tries: Iterable[Try], event_name: str | None) -> list[int]:
    """What a meter has of a line, as far as is known."""
    return [tried.value_units for tried in tries if tried.is_confirmed and tried.event_name == event_name]


def route_lines(items: Iterable[OutboxLine], decisions: Mapping[str, Decision], tries: Tries) -> list[OutboxLine]:
    """The outbox of invoice items as it is after the events were sent.

    A line that Stripe has or may have as an event is held, whatever its subscription's route is now, and so is one that
    Stripe rates with others; one that meters cannot take is let go.
    """
    routed = []
    for item in items:
        decision = decisions.get(item.line_id)
        hold = item.hold_reason
        if any(tried.is_confirmed for tried in tries.get(item.line_id, ())):
            hold = ON_A_METER
        elif any(tried.is_unknown for tried in tries.get(item.line_id, ())):
            hold = hold or "meter_event"
        elif decision is not None and hold == "meter_event":
            if decision.way == "item":
                hold = None
            elif decision.way == "done":
                hold = ON_A_METER
        routed.append(item if hold == item.hold_reason else replace(item, hold_reason=hold))
    return routed


def find_arrived(values: Sequence[int], arrived: int) -> tuple[int, ...] | None:
    """Which of the values, by position, add up to what arrived; None when no choice of them does.

    Where several choices do, any is right: the events are of one customer, meter and minute, so that only sums differ.
    """
    for count in range(len(values) + 1):
        for chosen in combinations(range(len(values)), count):
            if sum(values[position] for position in chosen) == arrived:
                return chosen
    return None


def describe_events(decisions: Iterable[Decision]) -> str:
    """What a sync would do with the lines of the route meter_event, as text."""
    text = []
    counts: dict[Way, int] = defaultdict(int)
    decided = list(decisions)
    for decision in decided:
        line = decision.line
        counts[decision.way] += 1
        if decision.way == "send":
            value = decision.tried.value_units if decision.tried is not None else line.value_units
            text.append(f"event {decision.identifier}: {value} on {line.event_name}, customer {line.customer_id}")
        elif decision.way == "item" and line.hold_reason is None:
            text.append(f"line {line.line_id}: {line.value_units} on {line.event_name} goes as an invoice item")
        elif decision.way == "item":
            text.append(f"line {line.line_id}: {line.hold_reason}, goes as an invoice item")
        elif decision.way == "correction":
            text.append(f"line {line.line_id}: {line.value_units} on {line.event_name}, once other lines are settled")
        elif decision.way == "amount":
            text.append(f"line {line.line_id}: an amount without a quantity, once other lines are settled")
    text.append(
        f"would send {counts['send']} meter events and look for {counts['look']}; {counts['done']} there already, "
        f"{counts['item']} as invoice items, {counts['held']} held, "
        f"{counts['wait'] + counts['correction'] + counts['amount']} waiting"
    )
    return "\n".join([*text, *describe_unmapped_events(decided)])


def describe_unmapped_events(decisions: Iterable[Decision]) -> list[str]:
    """A sentence for each customer whose events are held because nobody in Stripe is known for them."""
    counts = Counter(
        decision.line.customer_id
        for decision in decisions
        if decision.way == "held" and decision.line.hold_reason is None
    )
    return [
        f"customer {customer_id}: {count} meter events held, because METERING_STRIPE_CREATE_CUSTOMERS=0 and "
        "customers.csv has no stripe_customer_id for it"
        for customer_id, count in counts.items()
    ]
