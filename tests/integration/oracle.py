"""An oracle of the rating engine: docs/rating.md computed a second time, in plain Python with exact fractions.

It takes the seeds as `price_books.write_seeds` does and the events as they are landed, and says which invoice lines and
which usage by service period the marts must have. It shares no code with the models and is written to be read, not to be
fast: one function or class a rule, in the order of docs/rating.md, whose sections the docstrings name.

Quantities and amounts are `Fraction`s (amounts in major units of the currency), instants are naive `datetime`s in UTC.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from calendar import monthrange
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

Row = Mapping[str, Any]
Seeds = Mapping[str, Sequence[Row]]

FOREVER = datetime.max
TICK = timedelta(microseconds=1)
ZERO = Fraction(0)
INTERVAL_MONTHS = {"month": 1, "quarter": 3, "year": 12}
QUANTITY_DECIMALS = 9
AMOUNT_DECIMALS = 21

# ---------- numbers


def rounded(value: Fraction, decimals: int) -> Fraction:
    """Round half away from zero; negative decimals round to tens, hundreds."""
    unit = Fraction(10) ** -decimals
    steps = math.floor(abs(value) / unit + Fraction(1, 2))
    return steps * unit if value >= 0 else -steps * unit


def rounded_in_steps(value: Fraction, rounding: str, decimals: int) -> Fraction:
    """Round by a `quantity_rounding`: ceil, floor or half_up (Quantities)."""
    unit = Fraction(10) ** -decimals
    if rounding == "ceil":
        return math.ceil(value / unit) * unit
    if rounding == "floor":
        return math.floor(value / unit) * unit
    return rounded(value, decimals)


def number(value: Any) -> Fraction | None:
    """A cell or a property as an exact number; None if it is empty."""
    return None if value is None or value == "" else Fraction(str(value))


def positive(value: Fraction) -> Fraction:
    return max(value, ZERO)


# ---------- time


@dataclass(frozen=True)
class Span:
    """A half-open interval [start, end) in UTC; without an end it lasts FOREVER."""

    start: datetime
    end: datetime

    def holds(self, instant: datetime) -> bool:
        return self.start <= instant < self.end

    def cut_to(self, other: Span) -> Span | None:
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Span(start, end) if start < end else None

    def cut_at(self, instants: Iterable[datetime]) -> list[Span]:
        """The pieces between the instants that lie inside."""
        inside = {instant for instant in instants if self.start < instant < self.end}
        return [Span(start, end) for start, end in pairwise(sorted({self.start, self.end} | inside))]

    def days(self, zone: ZoneInfo) -> int:
        """date(local end) - date(local start) (Service periods)."""
        return (local(self.end, zone).date() - local(self.start, zone).date()).days


def to_utc(wall_clock: datetime, zone: ZoneInfo) -> datetime:
    """The instant of a wall clock: the second of two; one that is skipped counts on from before the gap."""
    return max(wall_clock.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)).replace(tzinfo=None)


def local(instant: datetime, zone: ZoneInfo) -> datetime:
    """The wall clock of a zone at an instant."""
    return instant.replace(tzinfo=UTC).astimezone(zone).replace(tzinfo=None)


def midnight(day: date, zone: ZoneInfo) -> datetime:
    return to_utc(datetime(day.year, day.month, day.day), zone)


def validity(row: Row, zone: ZoneInfo, start: str = "valid_from", end: str = "valid_to") -> Span:
    """The interval of a row whose bounds are wall clocks of a zone."""
    ends = row.get(end)
    return Span(to_utc(row[start], zone), to_utc(ends, zone) if ends else FOREVER)


def add_months(moment: datetime, months: int) -> datetime:
    """The same day and time some months on; the last day of a month that is too short."""
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    month += 1
    return moment.replace(year=year, month=month, day=min(moment.day, monthrange(year, month)[1]))


def full_periods(anchor: date | None, months: int, first: date, last: date) -> Iterator[tuple[date, date]]:
    """The full periods that hold the days from first to last: their first days and those of the next (Service periods)."""
    origin = datetime(anchor.year, anchor.month, anchor.day) if anchor else datetime(first.year, 1, 1)
    turn = (first.year * 12 + first.month - origin.year * 12 - origin.month) // months - 1
    while True:
        start, end = (add_months(origin, n * months).date() for n in (turn, turn + 1))
        if start > last:
            return
        if end > first:
            yield start, end
        turn += 1


# ---------- service periods


@dataclass(frozen=True)
class Phase:
    plan_code: str
    span: Span


@dataclass(frozen=True)
class Subscription:
    subscription_id: str
    customer_id: str
    zone: ZoneInfo
    anchor: date | None
    phases: tuple[Phase, ...]


@dataclass(frozen=True, eq=False)
class ServicePeriod:
    """A subscription x plan x full period. `full` is the full period, `parts` are the phases of the plan cut to it."""

    subscription: Subscription
    plan_code: str
    full: Span
    parts: tuple[Span, ...]

    @property
    def start(self) -> datetime:
        return self.parts[0].start

    @property
    def end(self) -> datetime:
        return self.parts[-1].end

    @property
    def full_days(self) -> int:
        return self.full.days(self.subscription.zone)

    @property
    def active_days(self) -> int:
        return sum(part.days(self.subscription.zone) for part in self.parts)

    def holds(self, instant: datetime) -> bool:
        """Whether usage of the instant belongs to the service period: not that of a pause."""
        return any(part.holds(instant) for part in self.parts)

    def days(self, span: Span) -> int:
        return span.days(self.subscription.zone)


def service_periods(subscription: Subscription, plan_code: str, months: int, until: datetime) -> list[ServicePeriod]:
    """The service periods of a plan, in order, up to the full period that holds `until` (Service periods)."""
    zone = subscription.zone
    phases = [phase.span for phase in subscription.phases if phase.plan_code == plan_code]
    first, last = local(phases[0].start, zone).date(), local(until, zone).date()
    periods = []
    for starts_on, ends_on in full_periods(subscription.anchor, months, first, last):
        full = Span(midnight(starts_on, zone), midnight(ends_on, zone))
        parts = tuple(part for part in (phase.cut_to(full) for phase in phases) if part)
        if parts:
            periods.append(ServicePeriod(subscription, plan_code, full, parts))
    return periods


# ---------- quantities


class MeteredEvent(NamedTuple):
    """An event that a metric counts. `value` is what the metric aggregates, as a number where it is one."""

    at: datetime
    key: str
    value: Fraction
    text: str | None


def property_text(value: Any) -> str | None:
    """A property as text, a missing one as None."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


@dataclass(frozen=True)
class Metric:
    """A billable metric with its filters and pricing dimensions (Quantities)."""

    row: Row
    filters: tuple[Row, ...]
    pricing_dimensions: tuple[str, ...]

    @property
    def code(self) -> str:
        return str(self.row["metric_code"])

    @property
    def aggregation(self) -> str:
        return str(self.row["aggregation"])

    @property
    def metering_period(self) -> str | None:
        return self.row.get("metering_period") or None

    @property
    def is_cumulative(self) -> bool:
        """Whether segments price what lies between two quantities; else the metric is a gauge (Prices)."""
        if self.metering_period is None:
            return self.aggregation in ("count", "sum", "max", "unique_count", "weighted_sum")
        inside = self.aggregation in ("count", "sum", "max", "unique_count")
        return inside and self.row["period_aggregation"] in ("sum", "max", "average")

    def counts(self, event: Row) -> bool:
        if event["event_type"] != self.row["event_type"]:
            return False
        conditions: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for row in self.filters:
            conditions[row["property_name"], row["operator"]].append(row.get("filter_value"))
        properties = event["properties"]
        return all(meets(properties.get(name), operator, values) for (name, operator), values in conditions.items())

    def group_of(self, event: Row) -> Group:
        return Group(tuple((name, property_text(event["properties"].get(name))) for name in self.pricing_dimensions))

    def metered_event(self, event: Row) -> MeteredEvent:
        text, value = None, ZERO
        if self.aggregation == "unique_count":
            text = property_text(event["properties"][self.row["property_name"]])
        elif self.aggregation != "count":
            value = Fraction(str(event["properties"][self.row["property_name"]]))
        return MeteredEvent(instant_of(event), event["idempotency_key"], value, text)

    def billable_units(self, quantity: Fraction) -> Fraction:
        if quantity < 0:
            return ZERO
        units = rounded(quantity / (number(self.row.get("unit_size")) or 1), QUANTITY_DECIMALS)
        rounding = self.row.get("quantity_rounding")
        return rounded_in_steps(units, rounding, self.row.get("quantity_scale") or 0) if rounding else units


def instant_of(event: Row) -> datetime:
    return datetime.fromisoformat(event["occurred_at"]).astimezone(UTC).replace(tzinfo=None)


def meets(value: Any, operator: str, wanted: Sequence[Any]) -> bool:
    """Whether a property (None if it is missing) meets the rows of one filter operator."""
    if operator == "is_present":
        return value is not None
    if operator == "is_absent":
        return value is None
    if operator == "not_in":
        return property_text(value) not in wanted
    if value is None:
        return False
    if operator in ("equals", "in"):
        return property_text(value) in wanted
    amount = Fraction(str(value))
    bounds = [Fraction(str(bound)) for bound in wanted]
    if operator == "greater_than":
        return all(amount > bound for bound in bounds)
    if operator == "at_least":
        return all(amount >= bound for bound in bounds)
    if operator == "less_than":
        return all(amount < bound for bound in bounds)
    if operator == "at_most":
        return all(amount <= bound for bound in bounds)
    raise ValueError(f"unknown filter operator {operator}")


class Group(NamedTuple):
    """The values of the pricing dimensions, in order of position."""

    values: tuple[tuple[str, str | None], ...]

    @property
    def dimensions(self) -> str:
        return json.dumps(dict(self.values), ensure_ascii=False)


NO_DIMENSIONS = Group(())


def statistic(name: str, values: Sequence[Fraction], percentile: Fraction | None) -> Fraction:
    """sum, max, min, average or percentile of numbers; 0 of none."""
    if not values:
        return ZERO
    if name == "sum":
        return sum(values, ZERO)
    if name == "max":
        return max(values)
    if name == "min":
        return min(values)
    if name == "average":
        return rounded(sum(values, ZERO) / len(values), QUANTITY_DECIMALS)
    if name == "percentile":
        assert percentile is not None
        return sorted(values)[math.ceil(percentile * len(values)) - 1]
    raise ValueError(f"unknown aggregation {name}")


def aggregated(aggregation: str, events: Sequence[MeteredEvent], percentile: Fraction | None) -> Fraction:
    """The quantity of events taken together, by any aggregation but weighted_sum."""
    if aggregation == "count":
        return Fraction(len(events))
    if aggregation == "unique_count":
        return Fraction(len({event.text for event in events}))
    if aggregation == "latest":
        return max((event.at, event.value) for event in events)[1]
    return statistic(aggregation, [event.value for event in events], percentile)


class Usage:
    """The usage of one metric and group in one service period.

    Args:
        metric: what is metered.
        history: all events of the customer and group that the metric counts, also those outside the service period.
        period: the service period.
    """

    def __init__(self, metric: Metric, history: Sequence[MeteredEvent], period: ServicePeriod) -> None:
        self.metric = metric
        self.period = period
        self.history = history
        self.events = [event for event in history if period.holds(event.at)]
        self._metered: dict[datetime, Fraction] = {}

    @property
    def exists(self) -> bool:
        if self.events or self.metric.aggregation != "weighted_sum":
            return bool(self.events)
        return any(
            sum((event.value for event in self.history if event.at < part.start), ZERO) != 0
            for part in self.period.parts
        )

    def events_in(self, span: Span) -> list[MeteredEvent]:
        return [event for event in self.events if span.holds(event.at)]

    def metered(self, until: datetime) -> Fraction:
        """The metered quantity from the start of the service period up to an instant, before billable units."""
        if until not in self._metered:
            self._metered[until] = self._measure(until)
        return self._metered[until]

    def units(self, until: datetime) -> Fraction:
        """B(t): the billable units up to an instant."""
        return self.metric.billable_units(self.metered(until))

    @property
    def total_units(self) -> Fraction:
        """B at the end of the service period."""
        return self.units(self.period.end)

    def is_used_in(self, span: Span) -> bool:
        """Whether a cumulative metric has a line there: events, or another quantity at the end than at the start."""
        return bool(self.events_in(span)) or self.metered(span.start) != self.metered(span.end)

    def _measure(self, until: datetime) -> Fraction:
        if self.metric.aggregation == "weighted_sum":
            return self._weighted_sum(until)
        percentile = number(self.metric.row.get("percentile"))
        events = [event for event in self.events if event.at < until]
        if self.metric.metering_period is None:
            return aggregated(self.metric.aggregation, events, percentile)
        windows: dict[Any, list[MeteredEvent]] = defaultdict(list)
        for event in events:
            windows[self._window(event.at)].append(event)
        quantities = [aggregated(self.metric.aggregation, inside, percentile) for inside in windows.values()]
        quantities += [ZERO] * (self._window_count - len(quantities))
        return statistic(self.metric.row["period_aggregation"], quantities, percentile)

    def _weighted_sum(self, until: datetime) -> Fraction:
        """Each change counts with its value for the time from it (or the start of the part) to the end of the part."""
        integral = ZERO
        for part in self.period.parts:
            end = min(part.end, until)
            for event in self.history:
                integral += event.value * max((end - max(part.start, event.at)) // TICK, 0)
        full = self.period.full
        return rounded(integral / ((full.end - full.start) // TICK), QUANTITY_DECIMALS)

    def _window(self, at: datetime) -> int:
        """The number of the hour (UTC), local day or local month that holds an instant."""
        if self.metric.metering_period == "hour":
            return (at - datetime.min) // timedelta(hours=1)
        day = local(at, self.period.subscription.zone).date()
        return day.toordinal() if self.metric.metering_period == "day" else day.year * 12 + day.month

    @cached_property
    def _window_count(self) -> int:
        """The windows that overlap the interval from the start of the service period to its end."""
        return self._window(self.period.end - TICK) - self._window(self.period.start) + 1


# ---------- prices


@dataclass(frozen=True)
class Tier:
    """Holds the quantities above `above`, up to and including `up_to` (None: all)."""

    above: Fraction
    up_to: Fraction | None
    package_size: Fraction | None
    unit_amount: Fraction
    flat_amount: Fraction

    def clip(self, units: Fraction) -> Fraction:
        below_ceiling = units if self.up_to is None else min(units, self.up_to)
        return max(below_ceiling, self.above) - self.above

    def contains(self, units: Fraction) -> bool:
        return self.above < units and (self.up_to is None or units <= self.up_to)


@dataclass(frozen=True)
class PriceVersion:
    """A row of `pricing/charges` with its tiers and, for percentage charges, its terms."""

    row: Row
    tier_rows: tuple[Row, ...]
    terms: Row

    @property
    def charge_code(self) -> str:
        return str(self.row["charge_code"])

    @property
    def model(self) -> str:
        return str(self.row["charge_model"])

    @property
    def is_prorated(self) -> bool:
        return bool(self.row.get("proration") == "by_day")

    @property
    def is_in_advance(self) -> bool:
        return bool(self.row.get("billing_timing") == "in_advance")

    @property
    def first_flat_is_due_at_once(self) -> bool:
        return bool(self.row.get("zero_usage") == "first_tier_flat")

    def tiers(self, group: Group) -> list[Tier]:
        """The tiers of a group, none if it fits no row (Prices, Tiers)."""
        values = [value for _, value in group.values] + [None] * (3 - len(group.values))

        def wanted(row: Row) -> list[str | None]:
            return [row.get(f"dimension_{position}_value") for position in (1, 2, 3)]

        fitting = [
            row
            for row in self.tier_rows
            if all(want is None or want == value for want, value in zip(wanted(row), values, strict=True))
        ]
        if not fitting:
            return []
        best = max([want is not None for want in wanted(row)] for row in fitting)
        chosen = [row for row in fitting if [want is not None for want in wanted(row)] == best]
        tiers, above = [], ZERO
        for row in sorted(chosen, key=lambda row: int(row["tier_number"])):
            up_to = number(row.get("up_to"))
            tiers.append(
                Tier(
                    above=above,
                    up_to=up_to,
                    package_size=number(row.get("package_size")),
                    unit_amount=number(row.get("unit_amount")) or ZERO,
                    flat_amount=number(row.get("flat_amount")) or ZERO,
                )
            )
            above = up_to if up_to is not None else above
        return tiers


@dataclass(frozen=True)
class Segment:
    span: Span
    version: PriceVersion


@dataclass(frozen=True)
class Dated:
    """A row that holds for a time. The one with the highest rank goes before the others that hold."""

    span: Span
    rank: tuple[Any, ...]
    item: Any


def in_force(part: Span, candidates: Sequence[Dated]) -> list[tuple[Span, Any]]:
    """The longest intervals inside a part in which one candidate holds and goes before the others, in order of time."""
    bounds = [bound for candidate in candidates for bound in (candidate.span.start, candidate.span.end)]
    found: list[tuple[Span, Any]] = []
    for piece in part.cut_at(bounds):
        holding = [candidate for candidate in candidates if candidate.span.holds(piece.start)]
        if not holding:
            continue
        best = max(holding, key=lambda candidate: candidate.rank).item
        if found and found[-1][1] is best and found[-1][0].end == piece.start:
            found[-1] = (Span(found[-1][0].start, piece.end), best)
        else:
            found.append((piece, best))
    return found


def packages(units: Fraction, size: Fraction | None) -> Fraction:
    """Started packages; the units themselves without a size."""
    return units if size is None else Fraction(math.ceil(units / size))


def rated_tiers(
    version: PriceVersion,
    tiers: Sequence[Tier],
    before: Fraction,
    through: Fraction,
    total: Fraction,
    *,
    is_first: bool,
) -> list[Fraction]:
    """What the units from x1 = `before` to x2 = `through` cost, of a service period with X = `total` (Prices, Tiers).

    Args:
        version: price version, for its model and zero usage.
        tiers: of the group.
        before: units after the entitlement up to the start.
        through: the same up to the end.
        total: the same up to the end of the service period.
        is_first: whether this is the group's first line, with which `first_tier_flat` makes a flat amount due.

    Returns:
        Amount of each tier in major units, unrounded.
    """
    amounts = []
    for index, tier in enumerate(tiers):
        at_once = version.first_flat_is_due_at_once
        if version.model in ("volume", "stairstep"):
            if not (tier.contains(total) or (at_once and index == 0 and total == 0)):
                amounts.append(ZERO)
                continue
            priced = packages(through, tier.package_size) - packages(before, tier.package_size)
            entered = int(is_first) if at_once else int(through > 0) - int(before > 0)
        else:
            size = tier.package_size if version.model == "package" else None
            priced = packages(tier.clip(through), size) - packages(tier.clip(before), size)
            entered = int(through > tier.above) - int(before > tier.above)
            if at_once and index == 0:
                entered = int(is_first)
        amounts.append(priced * tier.unit_amount + entered * tier.flat_amount)
    return amounts


class RatedEvent(NamedTuple):
    at: datetime
    value: Fraction
    free: Fraction
    amount: Fraction


def rated_events(version: PriceVersion, rate: Fraction, events: Sequence[MeteredEvent]) -> list[RatedEvent]:
    """The events of a group in a service period, each by the terms of a percentage version (Prices, percentage)."""
    free_events, free_amount = number(version.terms.get("free_events")), number(version.terms.get("free_amount"))
    fixed = number(version.terms.get("event_fixed_amount")) or ZERO
    lowest = number(version.terms.get("event_minimum_amount"))
    highest = number(version.terms.get("event_maximum_amount"))
    has_free = free_events is not None or free_amount is not None
    result, running = [], ZERO
    for position, event in enumerate(sorted(events, key=lambda event: (event.at, event.key)), start=1):
        running += event.value
        is_counted_free = free_events is None or position <= free_events
        is_free = has_free and is_counted_free and (free_amount is None or running <= free_amount)
        if not has_free or not is_counted_free:
            free = ZERO
        elif free_amount is None:
            free = event.value
        else:
            free = min(positive(free_amount - (running - event.value)), event.value)
        amount = ZERO
        if not is_free:
            amount = rate * (event.value - free) + fixed
            amount = amount if lowest is None else max(amount, lowest)
            amount = amount if highest is None else min(amount, highest)
        result.append(RatedEvent(event.at, event.value, free, amount))
    return result


# ---------- lines


class LineKey(NamedTuple):
    """What a line is about. Lines of type minimum and commitment have no version, dimensions and price start.

    `code` is the charge, for commitment lines the commitment.
    """

    line_type: str
    subscription_id: str
    code: str
    price_version: int | None
    dimensions: str
    service_period_start_at: datetime
    price_start_at: datetime | None


class CreditKey(NamedTuple):
    grant_code: str
    credit_grant_start_at: datetime
    paid: LineKey


class Slice(NamedTuple):
    """A piece of a line between two bounds of the customer's credits, with its unrounded amount."""

    start: datetime
    unrounded: Fraction


@dataclass
class Line:
    """An expected row of `marts.fct_rated_lines` (not of type credit); columns of the same names."""

    key: LineKey
    period: ServicePeriod
    currency_code: str
    charge_code: str | None
    due_at: datetime
    amount: Fraction
    slices: list[Slice]
    metric_code: str | None = None
    charge_model: str | None = None
    price_end_at: datetime | None = None
    metered_quantity: Fraction = ZERO
    included_quantity_used: Fraction = ZERO
    billable_quantity: Fraction = ZERO
    unrounded_amount: Fraction = ZERO
    gross_amount: Fraction = ZERO
    maximum_reduction_amount: Fraction = ZERO
    events: list[datetime] = field(default_factory=list)

    @property
    def discount_amount(self) -> Fraction:
        return self.gross_amount - self.maximum_reduction_amount - self.amount

    @property
    def billing_period(self) -> str:
        """The local month that ends with due_at (From rated amounts to lines), also where clocks change at its midnight."""
        zone = self.period.subscription.zone
        return f"{min(local(self.due_at - TICK, zone), local(self.due_at, zone) - TICK):%Y-%m}"


class UsageKey(NamedTuple):
    """Grain of `marts.fct_usage_by_service_period`."""

    subscription_id: str
    plan_code: str
    metric_code: str
    dimensions: str
    service_period_start_at: datetime


@dataclass
class Expected:
    """What the marts must hold.

    Attributes:
        lines: invoice lines of types usage, flat, minimum and commitment.
        credits: amounts (negative, major units) of the lines of type credit.
        usage: metered quantity and number of events of each group with usage.
        event_counts: events by metric and customer, billed or not.
        cases: subscription x charge x service period that were rated.
    """

    lines: dict[LineKey, Line]
    credits: dict[CreditKey, Fraction]
    usage: dict[UsageKey, tuple[Fraction, int]]
    event_counts: dict[tuple[str, str], int]
    cases: int


LineIds = Callable[[LineKey], str]


class Book:
    """The seeds by key, with the defaults of empty cells."""

    def __init__(self, seeds: Seeds, minor_units: Mapping[str, int]) -> None:
        self.seeds = seeds
        self.minor_units = minor_units
        self.plans = {row["plan_code"]: row for row in seeds["pricing/plans"]}
        self.metrics = {row["metric_code"]: self._metric(row) for row in seeds["catalog/billable_metrics"]}
        self.subscriptions = list(self._subscriptions())
        self.versions = self._versions()

    def rows(self, seed: str) -> Sequence[Row]:
        return self.seeds.get(seed, ())

    def currency(self, plan_code: str) -> str:
        return str(self.plans[plan_code]["currency_code"])

    def decimals(self, plan_code: str) -> int:
        return self.minor_units[self.currency(plan_code)]

    def _metric(self, row: Row) -> Metric:
        code = row["metric_code"]
        dimensions = [
            (other["dimension_position"], other["property_name"])
            for other in self.rows("catalog/metric_dimensions")
            if other["metric_code"] == code and other["purpose"] == "pricing"
        ]
        filters = tuple(other for other in self.rows("catalog/metric_filters") if other["metric_code"] == code)
        return Metric(row, filters, tuple(name for _, name in sorted(dimensions)))

    def _subscriptions(self) -> Iterator[Subscription]:
        rows: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows("accounts/subscriptions"):
            rows[row["subscription_id"]].append(row)
        for subscription_id, phases in rows.items():
            zone = ZoneInfo(phases[0]["time_zone"])
            spans = [Phase(row["plan_code"], validity(row, zone, "started_at", "ended_at")) for row in phases]
            yield Subscription(
                subscription_id,
                phases[0]["customer_id"],
                zone,
                phases[0].get("anchor_date"),
                tuple(sorted(spans, key=lambda phase: phase.span.start)),
            )

    def _versions(self) -> dict[str, dict[str, list[PriceVersion]]]:
        """The price versions by plan and charge."""
        tiers: dict[Any, list[Row]] = defaultdict(list)
        for row in self.rows("pricing/charge_tiers"):
            tiers[row["charge_code"], row["price_version"]].append(row)
        terms = {(row["charge_code"], row["price_version"]): row for row in self.rows("pricing/percentage_terms")}
        versions: dict[str, dict[str, list[PriceVersion]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows("pricing/charges"):
            key = (row["charge_code"], row["price_version"])
            versions[row["plan_code"]][row["charge_code"]].append(
                PriceVersion(row, tuple(tiers[key]), terms.get(key, {}))
            )
        return versions


def is_for(row: Row, customer_id: str) -> bool:
    return row.get("customer_id") in (None, customer_id)


def preferred(row: Row, zone: ZoneInfo, item: Any) -> Dated:
    """A customer's own row goes before the common ones, else the one that began later."""
    span = validity(row, zone)
    return Dated(span, (row.get("customer_id") is not None, span.start), item)


# ---------- the entitlement of a charge


class Entitlement:
    """What a charge includes for a subscription and plan, by service period and group (Entitlements)."""

    def __init__(self, rows: Iterable[Row], charge_code: str, periods: Sequence[ServicePeriod]) -> None:
        self.periods = periods
        subscription = periods[0].subscription
        self.candidates = [
            preferred(row, subscription.zone, row)
            for row in rows
            if row["charge_code"] == charge_code and is_for(row, subscription.customer_id)
        ]
        self.included = {period: self._included(period) for period in periods}

    def _row_at_start(self, period: ServicePeriod) -> Row | None:
        found = in_force(Span(period.start, period.start + TICK), self.candidates)
        return found[0][1] if found else None

    def _included(self, period: ServicePeriod) -> Fraction:
        numerator = ZERO
        for part in period.parts:
            for span, row in in_force(part, self.candidates):
                if row.get("proration") == "by_day":
                    numerator += Fraction(row["included_quantity"]) * period.days(span)
        row = self._row_at_start(period)
        if row is not None and row.get("proration") != "by_day":
            numerator += Fraction(row["included_quantity"]) * period.full_days
        return rounded(numerator / period.full_days, QUANTITY_DECIMALS)

    def by_period(self, units: Mapping[ServicePeriod, Fraction]) -> dict[ServicePeriod, Fraction]:
        """E of each service period for a group that has these billable units in its service periods."""
        result, carried = {}, ZERO
        for period in self.periods:
            result[period] = self.included[period] + carried
            row = self._row_at_start(period)
            limit = number(row.get("rollover_limit")) if row is not None else None
            carried = ZERO if limit is None else min(limit, positive(result[period] - units.get(period, ZERO)))
        return result


# ---------- credits


@dataclass(frozen=True)
class CreditInstance:
    """A grant while it is in force; the amount in major units (Credits)."""

    grant: Row
    span: Span
    amount: Fraction

    @property
    def order(self) -> tuple[Any, ...]:
        grant = self.grant
        return (grant["priority"], self.span.end, grant["cost_basis"], grant["created_at"], grant["grant_code"])


def recurred(start: datetime, recurrence: str, turn: int) -> datetime:
    if recurrence in INTERVAL_MONTHS:
        return add_months(start, turn * INTERVAL_MONTHS[recurrence])
    return start + turn * timedelta(days={"day": 1, "week": 7}[recurrence])


def credit_instances(grant: Row, horizon: datetime) -> Iterator[CreditInstance]:
    """The instances of a grant that start before the horizon."""
    start, expiry = grant["effective_at"], grant.get("expires_at") or FOREVER
    amount = Fraction(grant["amount"])
    if not grant.get("recurrence"):
        if start < horizon:
            yield CreditInstance(grant, Span(start, expiry), amount)
        return
    turn = 0
    while (begins := recurred(start, grant["recurrence"], turn)) < min(expiry, horizon):
        turn += 1
        yield CreditInstance(grant, Span(begins, min(recurred(start, grant["recurrence"], turn), expiry)), amount)


@dataclass
class PayableSlice:
    start: datetime
    line_id: str
    line: Line
    left: Fraction


def payable_slices(line: Line, line_id: str, decimals: int) -> list[PayableSlice]:
    """A line's amount shared out to its slices by rounding the running total (Credits)."""
    if line.amount <= 0:
        return []
    unrounded = [rounded(total, QUANTITY_DECIMALS) for total in accumulate(piece.unrounded for piece in line.slices)]
    totals = [rounded(line.amount * through / unrounded[-1], decimals) for through in unrounded]
    for index in reversed(range(len(totals) - 1)):
        totals[index] = min(totals[index], totals[index + 1])
    shares = [through - before for before, through in pairwise([ZERO, *map(positive, totals)])]
    return [PayableSlice(piece.start, line_id, line, share) for piece, share in zip(line.slices, shares, strict=True)]


def burnt(
    instances: Sequence[CreditInstance],
    slices: Sequence[PayableSlice],
    is_payable: Callable[[Row, Line], bool],
) -> dict[CreditKey, Fraction]:
    """Credit lines of one customer: amounts (negative) by instance and line.

    Args:
        instances: of the customer's grants.
        slices: of the customer's lines.
        is_payable: whether a grant may pay a line, by currency and charge.
    """
    slices = sorted(slices, key=lambda payable: (payable.start, payable.line.due_at, payable.line_id))
    starts = [payable.start for payable in slices]
    paid: dict[CreditKey, Fraction] = defaultdict(Fraction)
    for instance in sorted(instances, key=lambda instance: instance.order):
        left = instance.amount
        inside = slices[bisect_left(starts, instance.span.start) : bisect_left(starts, instance.span.end)]
        for payable in inside:
            amount = min(left, payable.left)
            if amount > 0 and is_payable(instance.grant, payable.line):
                left -= amount
                payable.left -= amount
                paid[CreditKey(instance.grant["grant_code"], instance.span.start, payable.line.key)] -= amount
    return dict(paid)


# ---------- from rated amounts to lines


def percentage_discounted(amount: Fraction, percentages: Iterable[Fraction]) -> Fraction:
    """An amount after percentage discounts in turn, each kept to 21 decimals (step 2)."""
    for percentage in percentages:
        amount = rounded(amount * (1 - percentage), AMOUNT_DECIMALS)
    return amount


def allocated(discount: int, amounts: Sequence[int], line_ids: Sequence[str]) -> list[int]:
    """A fixed discount shared out to non-negative lines, all in minor units (step 3)."""
    total = sum(amounts)
    discount = min(discount, total)
    if discount <= 0:
        return [0] * len(amounts)
    shares = [discount * amount // total for amount in amounts]
    remainders = [discount * amount % total for amount in amounts]
    neediest = sorted(range(len(amounts)), key=lambda index: (-remainders[index], line_ids[index]))
    for index in neediest[: discount - sum(shares)]:
        shares[index] += 1
    return shares


def period_bound(period: ServicePeriod, segments: Sequence[Segment], column: str, decimals: int) -> Fraction | None:
    """The minimum or maximum of a charge in a service period (steps 4 and 5), None if there is none."""
    bounds = [number(segment.version.row.get(column)) for segment in segments]
    if all(bound is None for bound in bounds) or (column == "maximum_amount" and None in bounds):
        return None
    shares = [
        Fraction(period.days(segment.span), period.full_days)
        if segment.version.is_prorated
        else Fraction(segment.span.start == period.start)
        for segment in segments
    ]
    if column == "maximum_amount" and sum(shares) == 0:
        return None
    return rounded(sum((bound or ZERO) * share for bound, share in zip(bounds, shares, strict=True)), decimals)


class Oracle:
    """Rates a price book over events.

    Args:
        seeds: rows by the name of the seed (`pricing/charges`), cells as Python values, empty ones None or left out.
        minor_units: decimals of each currency.
        events: accepted events as they are landed.
        as_of: instant in UTC; service periods that start later do not exist yet.
        line_ids: the `line_id` of a line, which settles ties of fixed discounts and the order in which credits burn.
    """

    def __init__(
        self,
        seeds: Seeds,
        minor_units: Mapping[str, int],
        events: Iterable[Row],
        as_of: datetime,
        line_ids: LineIds = repr,
    ) -> None:
        self.book = Book(seeds, minor_units)
        self.as_of = as_of
        self.line_ids = line_ids
        self.history = self._meter(events)
        self.lines: list[Line] = []
        self.usage: dict[UsageKey, tuple[Fraction, int]] = {}
        self.cases = 0
        for subscription in self.book.subscriptions:
            self._rate_subscription(subscription)

    def expected(self) -> Expected:
        """What the marts must hold."""
        lines = {line.key: line for line in self.lines}
        assert len(lines) == len(self.lines)
        counts = {key: sum(map(len, groups.values())) for key, groups in self.history.items()}
        return Expected(lines, self._credits(), self.usage, counts, self.cases)

    # ---------- quantities

    def _meter(self, events: Iterable[Row]) -> dict[tuple[str, str], dict[Group, list[MeteredEvent]]]:
        history: dict[tuple[str, str], dict[Group, list[MeteredEvent]]] = {}
        for event in sorted(events, key=lambda event: (instant_of(event), event["idempotency_key"])):
            for metric in self.book.metrics.values():
                if metric.counts(event):
                    groups = history.setdefault((metric.code, event["customer_id"]), defaultdict(list))
                    groups[metric.group_of(event)].append(metric.metered_event(event))
        return history

    def _usages(self, metric: Metric, periods: Sequence[ServicePeriod]) -> dict[ServicePeriod, dict[Group, Usage]]:
        groups = self.history.get((metric.code, periods[0].subscription.customer_id), {})
        found = {
            period: {group: Usage(metric, history, period) for group, history in groups.items()} for period in periods
        }
        return {
            period: {group: usage for group, usage in usages.items() if usage.exists}
            for period, usages in found.items()
        }

    # ---------- a subscription

    def _rate_subscription(self, subscription: Subscription) -> None:
        own: list[Line] = []
        periods: list[ServicePeriod] = []
        for plan_code in dict.fromkeys(phase.plan_code for phase in subscription.phases):
            months = INTERVAL_MONTHS[self.book.plans[plan_code]["billing_interval"]]
            of_plan = service_periods(subscription, plan_code, months, self.as_of)
            periods += of_plan
            existing = [period for period in of_plan if period.start <= self.as_of]
            if existing:
                own += self._rate_plan(plan_code, existing)
        self.lines += [*own, *self._commitment_lines(subscription, periods, own)]

    def _rate_plan(self, plan_code: str, periods: Sequence[ServicePeriod]) -> list[Line]:
        by_period: dict[ServicePeriod, list[Line]] = defaultdict(list)
        segments: dict[tuple[str, ServicePeriod], list[Segment]] = {}
        for charge_code in self.book.versions[plan_code]:
            for period in periods:
                segments[charge_code, period] = self._segments(charge_code, period)
            of_charge = {period: segments[charge_code, period] for period in periods}
            for period, lines in self._rate_charge(charge_code, of_charge).items():
                by_period[period] += lines
        result: list[Line] = []
        for period in periods:
            lines = by_period[period]
            for line in lines:
                self._discount_by_percentages(line)
            self._discount_by_fixed_amounts(period, lines)
            result += lines
            for charge_code in self.book.versions[plan_code]:
                of_one = [line for line in lines if line.charge_code == charge_code]
                self._cut_to_maximum(period, segments[charge_code, period], of_one)
                result += self._minimum_lines(period, segments[charge_code, period], of_one)
        return result

    def _segments(self, charge_code: str, period: ServicePeriod) -> list[Segment]:
        """The price segments of a charge in a service period (Prices)."""
        subscription = period.subscription
        candidates = [
            preferred(version.row, subscription.zone, version)
            for version in self.book.versions[period.plan_code][charge_code]
            if is_for(version.row, subscription.customer_id)
        ]
        return [Segment(*found) for part in period.parts for found in in_force(part, candidates)]

    # ---------- rated amounts

    def _rate_charge(
        self, charge_code: str, segments: Mapping[ServicePeriod, Sequence[Segment]]
    ) -> dict[ServicePeriod, list[Line]]:
        periods = list(segments)
        self.cases += len(periods)
        rows = self.book.versions[periods[0].plan_code][charge_code]
        lines: dict[ServicePeriod, list[Line]] = {period: [] for period in periods}
        metric_code = rows[0].row.get("metric_code")
        if not metric_code:
            for period in periods:
                lines[period] = [self._flat_line(period, segment) for segment in segments[period]]
            return lines
        metric = self.book.metrics[metric_code]
        usages = self._usages(metric, periods)
        entitlement = Entitlement(self.book.rows("pricing/entitlements"), charge_code, periods)
        for group in dict.fromkeys(group for found in usages.values() for group in found):
            of_group = {period: usages[period][group] for period in periods if group in usages[period]}
            included = entitlement.by_period({period: usage.total_units for period, usage in of_group.items()})
            for period, usage in of_group.items():
                self._note_usage(period, group, usage)
                lines[period] += self._group_lines(group, usage, segments[period], included[period])
        for period in periods:
            if not lines[period] and segments[period]:
                lines[period] += self._zero_usage_lines(period, segments[period][-1])
        return lines

    def _note_usage(self, period: ServicePeriod, group: Group, usage: Usage) -> None:
        key = UsageKey(
            period.subscription.subscription_id,
            period.plan_code,
            usage.metric.code,
            group.dimensions,
            period.start,
        )
        self.usage[key] = (usage.metered(period.end), len(usage.events))

    def _group_lines(self, group: Group, usage: Usage, segments: Sequence[Segment], included: Fraction) -> list[Line]:
        lines: list[Line] = []
        for segment in segments:
            tiers = segment.version.tiers(group)
            if not tiers or not (usage.is_used_in(segment.span) if usage.metric.is_cumulative else usage.events):
                continue
            line = self._line(usage.period, segment, "usage", group)
            line.events = [event.at for event in usage.events_in(segment.span)]
            if segment.version.model == "percentage":
                self._rate_percentage(line, segment, tiers[0].unit_amount, usage)
            elif usage.metric.is_cumulative:
                self._rate_cumulative(line, segment, tiers, usage, included, is_first=not lines)
            else:
                self._rate_gauge(line, segment, tiers, usage, included)
            lines.append(line)
        return lines

    def _line(self, period: ServicePeriod, segment: Segment, line_type: str, group: Group) -> Line:
        version = segment.version
        key = LineKey(
            line_type,
            period.subscription.subscription_id,
            version.charge_code,
            version.row["price_version"],
            group.dimensions,
            period.start,
            segment.span.start,
        )
        return Line(
            key=key,
            period=period,
            currency_code=self.book.currency(period.plan_code),
            charge_code=version.charge_code,
            due_at=period.start if version.is_in_advance else period.end,
            amount=ZERO,
            slices=[],
            metric_code=version.row.get("metric_code") or None,
            charge_model=version.model,
            price_end_at=segment.span.end,
        )

    def _rate_cumulative(
        self, line: Line, segment: Segment, tiers: Sequence[Tier], usage: Usage, included: Fraction, *, is_first: bool
    ) -> None:
        """Prices what lies between B at the start and B at the end of the segment."""
        total = positive(usage.total_units - included)

        def priced(span: Span, *, is_first: bool) -> Fraction:
            before, through = (positive(usage.units(bound) - included) for bound in (span.start, span.end))
            return sum(rated_tiers(segment.version, tiers, before, through, total, is_first=is_first), ZERO)

        span = segment.span
        before, through = usage.units(span.start), usage.units(span.end)
        line.metered_quantity = usage.metered(span.end) - usage.metered(span.start)
        line.billable_quantity = positive(through - included) - positive(before - included)
        line.included_quantity_used = min(through, included) - min(before, included)
        line.unrounded_amount = priced(span, is_first=is_first)
        for piece in self._slices(usage.period, span):
            # A flat amount that is due at once is due with the first usage of the first line.
            is_used = usage.is_used_in(piece)
            line.slices.append(Slice(piece.start, priced(piece, is_first=is_first and is_used)))
            is_first = is_first and not is_used
        assert sum((piece.unrounded for piece in line.slices), ZERO) == line.unrounded_amount

    def _rate_gauge(
        self, line: Line, segment: Segment, tiers: Sequence[Tier], usage: Usage, included: Fraction
    ) -> None:
        """Prices the whole quantity of the service period, for the segment's share of the active days."""
        period, span = usage.period, segment.span
        total = positive(usage.total_units - included)
        amounts = rated_tiers(segment.version, tiers, ZERO, total, total, is_first=True)
        line.metered_quantity = usage.metered(period.end)
        line.billable_quantity = total
        line.included_quantity_used = min(usage.total_units, included)
        if period.active_days == 0:
            whole = sum(amounts, ZERO) if span.end == period.end else ZERO
            line.slices = [Slice(span.start, whole)]
        else:
            line.slices = self._slices_by_day(period, span, amounts, period.active_days)
        line.unrounded_amount = sum((piece.unrounded for piece in line.slices), ZERO)

    def _slices_by_day(self, period: ServicePeriod, span: Span, amounts: Sequence[Fraction], days: int) -> list[Slice]:
        """Each slice has the amounts for the days up to its end less those for the days up to its start (Credits)."""

        def through(end: datetime) -> Fraction:
            share = Fraction(period.days(Span(span.start, end)), days)
            return sum((rounded(amount * share, AMOUNT_DECIMALS) for amount in amounts), ZERO)

        return [Slice(piece.start, through(piece.end) - through(piece.start)) for piece in self._slices(period, span)]

    def _rate_percentage(self, line: Line, segment: Segment, rate: Fraction, usage: Usage) -> None:
        events = rated_events(segment.version, rate, usage.events)
        inside = [event for event in events if segment.span.holds(event.at)]
        line.metered_quantity = sum((event.value for event in inside), ZERO)
        line.included_quantity_used = sum((event.free for event in inside), ZERO)
        line.billable_quantity = line.metered_quantity - line.included_quantity_used
        line.unrounded_amount = sum((event.amount for event in inside), ZERO)
        line.slices = [
            Slice(piece.start, sum((event.amount for event in inside if piece.holds(event.at)), ZERO))
            for piece in self._slices(usage.period, segment.span)
        ]

    def _flat_line(self, period: ServicePeriod, segment: Segment) -> Line:
        """A line of a flat charge, for one segment (Prices, flat)."""
        line = self._line(period, segment, "flat", NO_DIMENSIONS)
        version, span = segment.version, segment.span
        fee = version.tiers(NO_DIMENSIONS)[0].unit_amount
        line.billable_quantity = Fraction(1)
        if version.is_prorated:
            line.unrounded_amount = rounded(fee * period.days(span) / period.full_days, AMOUNT_DECIMALS)
            line.slices = self._slices_by_day(period, span, [fee], period.full_days)
        else:
            line.unrounded_amount = fee if span.start == period.start else ZERO
        if version.is_in_advance or not version.is_prorated:
            line.slices = [Slice(span.start, line.unrounded_amount)]
        return line

    def _zero_usage_lines(self, period: ServicePeriod, segment: Segment) -> list[Line]:
        """The line of a charge without any other in the service period, in its last segment (Prices, zero usage)."""
        policy = segment.version.row.get("zero_usage")
        if policy not in ("zero_line", "first_tier_flat"):
            return []
        line = self._line(period, segment, "usage", NO_DIMENSIONS)
        tiers = segment.version.tiers(NO_DIMENSIONS)
        if policy == "first_tier_flat" and tiers:
            line.unrounded_amount = tiers[0].flat_amount
        line.slices = [Slice(segment.span.start, line.unrounded_amount)]
        return [line]

    # ---------- discounts, maximum, minimum

    def _discounts(self, line: Line, discount_type: str) -> list[Row]:
        """The discounts of a line that hold at the start of its service period, in order of discount_code."""
        period = line.period
        found = [
            row
            for row in self.book.rows("pricing/discounts")
            if row["discount_type"] == discount_type
            and is_for(row, period.subscription.customer_id)
            and row.get("plan_code") in (None, period.plan_code)
            and row.get("charge_code") in (None, line.charge_code)
            and validity(row, period.subscription.zone).holds(period.start)
        ]
        return sorted(found, key=lambda row: str(row["discount_code"]))

    def _discount_by_percentages(self, line: Line) -> None:
        decimals = self.book.decimals(line.period.plan_code)
        line.gross_amount = rounded(line.unrounded_amount, decimals)
        percentages = [Fraction(row["percentage"]) for row in self._discounts(line, "percentage")]
        line.amount = rounded(percentage_discounted(line.unrounded_amount, percentages), decimals)

    def _discount_by_fixed_amounts(self, period: ServicePeriod, lines: Sequence[Line]) -> None:
        lines = [line for line in lines if line.amount >= 0]
        if not lines:
            return
        minor = Fraction(10) ** self.book.decimals(period.plan_code)
        discount = sum((Fraction(row["amount"]) for row in self._discounts(lines[0], "fixed")), ZERO)
        shares = allocated(
            int(discount * minor),
            [int(line.amount * minor) for line in lines],
            [self.line_ids(line.key) for line in lines],
        )
        for line, share in zip(lines, shares, strict=True):
            line.amount -= share / minor

    def _cut_to_maximum(self, period: ServicePeriod, segments: Sequence[Segment], lines: Sequence[Line]) -> None:
        maximum = period_bound(period, segments, "maximum_amount", self.book.decimals(period.plan_code))
        if maximum is None:
            return
        running = ZERO
        for line in sorted(lines, key=lambda line: (line.key.price_start_at, line.key.dimensions)):
            before, running = running, running + line.amount
            kept = min(running, maximum) - min(before, maximum)
            line.maximum_reduction_amount = line.amount - kept
            line.amount = kept

    def _minimum_lines(
        self, period: ServicePeriod, segments: Sequence[Segment], lines: Sequence[Line]
    ) -> Iterator[Line]:
        minimum = period_bound(period, segments, "minimum_amount", self.book.decimals(period.plan_code))
        missing = ZERO if minimum is None else minimum - sum((line.amount for line in lines), ZERO)
        if missing > 0:
            version = segments[-1].version
            yield self._topping_line(period, "minimum", version.charge_code, version.charge_code, missing)

    def _topping_line(
        self, period: ServicePeriod, line_type: str, code: str, charge_code: str | None, amount: Fraction
    ) -> Line:
        """A minimum or commitment line, which counts at the last instant of its service period."""
        return Line(
            key=LineKey(line_type, period.subscription.subscription_id, code, None, "{}", period.start, None),
            period=period,
            currency_code=self.book.currency(period.plan_code),
            charge_code=charge_code,
            due_at=period.end,
            amount=amount,
            slices=[Slice(period.end - TICK, amount)],
            unrounded_amount=amount,
            gross_amount=amount,
        )

    # ---------- commitments

    def _commitment_lines(
        self, subscription: Subscription, periods: Sequence[ServicePeriod], lines: Sequence[Line]
    ) -> Iterator[Line]:
        for row in self.book.rows("pricing/commitments"):
            if row["subscription_id"] != subscription.subscription_id:
                continue
            decimals = self.book.minor_units[row["currency_code"]]
            if row["true_up"] == "term":
                found = self._term_shortfalls(row, subscription, periods, lines)
            else:
                found = self._period_shortfalls(row, subscription, periods, lines, decimals)
            for period, missing in found:
                if missing > 0 and period.start <= self.as_of:
                    yield self._topping_line(period, "commitment", row["commitment_code"], None, missing)

    def _period_shortfalls(
        self,
        row: Row,
        subscription: Subscription,
        periods: Sequence[ServicePeriod],
        lines: Sequence[Line],
        decimals: int,
    ) -> Iterator[tuple[ServicePeriod, Fraction]]:
        """What each full period lacks of a commitment, and the service period that ends last in it (step 6)."""
        held = validity(row, subscription.zone)
        for full in dict.fromkeys(period.full for period in periods):
            together = [period for period in periods if period.full == full]
            pieces = [part.cut_to(held) for period in together for part in period.parts]
            if not any(pieces):
                continue
            days = sum(piece.days(subscription.zone) for piece in pieces if piece)
            committed = rounded(Fraction(row["amount"]) * days / full.days(subscription.zone), decimals)
            reached = sum((line.amount for line in lines if line.period.full == full), ZERO)
            yield max(together, key=lambda period: period.end), committed - reached

    def _term_shortfalls(
        self, row: Row, subscription: Subscription, periods: Sequence[ServicePeriod], lines: Sequence[Line]
    ) -> Iterator[tuple[ServicePeriod, Fraction]]:
        """What a term lacks of a commitment, and the service period that holds its last instant (step 6).

        A term that begins after the end of the subscription has none.
        """
        held = validity(row, subscription.zone)
        last_instant = min(held.end, max(phase.span.end for phase in subscription.phases)) - TICK
        reached = sum((line.amount for line in lines if held.holds(line.period.start)), ZERO)
        for period in periods:
            if held.holds(last_instant) and period.holds(last_instant):
                yield period, Fraction(row["amount"]) - reached

    # ---------- credits

    @cached_property
    def _instances(self) -> dict[str, list[CreditInstance]]:
        """The instances of each customer's grants, up to the end of the full periods that have begun."""
        horizon = add_months(self.as_of, 13)
        found: dict[str, list[CreditInstance]] = defaultdict(list)
        for grant in self.book.rows("pricing/credit_grants"):
            found[grant["customer_id"]] += credit_instances(grant, horizon)
        return found

    def _slices(self, period: ServicePeriod, span: Span) -> list[Span]:
        """A segment cut at the starts and ends of the customer's credits."""
        instances = self._instances.get(period.subscription.customer_id, [])
        return span.cut_at(bound for instance in instances for bound in (instance.span.start, instance.span.end))

    def _credits(self) -> dict[CreditKey, Fraction]:
        charges: dict[str, set[str]] = defaultdict(set)
        for row in self.book.rows("pricing/credit_grant_charges"):
            charges[row["grant_code"]].add(row["charge_code"])

        def is_payable(grant: Row, line: Line) -> bool:
            only = charges.get(grant["grant_code"])
            return grant["currency_code"] == line.currency_code and (only is None or line.charge_code in only)

        slices: dict[str, list[PayableSlice]] = defaultdict(list)
        for line in self.lines:
            customer_id = line.period.subscription.customer_id
            if customer_id in self._instances:
                decimals = self.book.decimals(line.period.plan_code)
                slices[customer_id] += payable_slices(line, self.line_ids(line.key), decimals)
        return {
            key: amount
            for customer_id, instances in self._instances.items()
            for key, amount in burnt(instances, slices[customer_id], is_payable).items()
        }
