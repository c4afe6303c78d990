"""A small, deterministic usage data set: event files in several formats, and totals to check them against.

The files look like what a gateway would deliver: they are slightly out of order, some deliveries arrive
twice, three contradict an earlier delivery of their key, and nine are malformed. The totals are summed from
the generated events themselves and not read back from the files, so that they are independent of every parser
and of the warehouse.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import random
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

SEPTEMBER_FILE = "events-2026-09.jsonl.gz"
OCTOBER_FILE = "events-2026-10.jsonl"
SESSIONS_FILE = "sessions.csv"
CLOUD_EVENTS_FILE = "cloudevents-2026-10.jsonl"
TOTALS_FILE = "independent_totals.csv"

#: The event files in delivery order: a key's first delivery in this order is the one that counts.
LOAD_ORDER = (SEPTEMBER_FILE, OCTOBER_FILE, SESSIONS_FILE, CLOUD_EVENTS_FILE)

CUSTOMER_IDS = tuple(f"cus_{number:03d}" for number in range(12))
CLOUD_EVENTS_SOURCE = "urn:sample:gateway"
TOTALS_SOURCE = "demo generator"

EVENT_COLUMNS = (
    "idempotency_key",
    "event_type",
    "schema_version",
    "customer_id",
    "occurred_at",
    "properties",
)
TOTALS_COLUMNS = (
    "metric_code",
    "customer_id",
    "dimensions",
    "period_start_at",
    "period_end_at",
    "quantity",
    "source",
)

#: The malformed deliveries, one of each. Their idempotency keys are ``malformed-<kind>``, with hyphens; the
#: broken one's cannot be read.
MALFORMED_KINDS = (
    "broken_json",
    "missing_customer_id",
    "unknown_event_type",
    "unknown_schema_version",
    "missing_context_tokens",
    "generated_tokens_not_a_number",
    "context_tokens_out_of_range",
    "service_not_allowed",
    "occurred_at_unparseable",
)

_SEPTEMBER = datetime(2026, 9, 1, tzinfo=UTC)
_OCTOBER = datetime(2026, 10, 1, tzinfo=UTC)
_NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)
_PERIODS = ((_SEPTEMBER, _OCTOBER), (_OCTOBER, _NOVEMBER))
_MICROSECOND = timedelta(microseconds=1)

# The first and the last instant of each month: a period that is wrong at either end shows up in the totals.
_BOUNDARY_INSTANTS = (_SEPTEMBER, _OCTOBER - _MICROSECOND, _OCTOBER, _NOVEMBER - _MICROSECOND)

# Below this there are too few events of each kind to copy, to contradict and to send as CloudEvents.
_MINIMUM_EVENTS = 200

_LLM_SHARE = Decimal("0.8")
_COPY_SHARE = Decimal("0.02")
_CLOUD_EVENTS_SHARE = Decimal("0.05")
_COPY_IN_NEXT_FILE_SHARE = 0.4
_CODE_SHARE = 0.3
_MODEL_GIVEN_SHARE = 0.7

_MAX_CONTEXT_TOKENS = 128_000
_MAX_GENERATED_TOKENS = 4_096

# Log-normal parameters (mu, sigma) of tokens by service. Public traces of LLM inference look like this: a
# coding assistant reads much and writes little, a conversation writes more; both have a long tail.
_CONTEXT_TOKENS = {"conversation": (6.9, 1.1), "code": (7.4, 1.0)}
_GENERATED_TOKENS = {"conversation": (5.0, 1.0), "code": (2.6, 1.1)}

_SESSION_SECONDS = (5.2, 1.0)
_MAX_SESSION_MILLISECONDS = 4 * 3600 * 1000

# Relative traffic by hour of the day, UTC.
_HOUR_WEIGHTS = (2, 1, 1, 1, 1, 2, 3, 5, 8, 10, 11, 11, 10, 11, 12, 11, 10, 9, 7, 6, 5, 4, 3, 2)


@dataclass(frozen=True, slots=True)
class DemoData:
    """What :func:`write_demo_data` wrote. ``deliveries == accepted + duplicates + rejected``.

    Attributes:
        september_events: Gzipped JSONL, ``llm_request`` events of September 2026.
        october_events: JSONL, ``llm_request`` events of October 2026, copies of September's, malformed lines.
        sessions: CSV, ``assistant_session`` events of both months; ``properties`` is JSON text.
        cloud_events: JSONL, CloudEvents 1.0, a part of October's ``llm_request`` events.
        independent_totals: CSV, one row per metric, customer, dimensions and UTC calendar month.
        deliveries: Lines in the event files, without the CSV header.
        accepted: Distinct valid idempotency keys: what has to be counted.
        duplicates: Valid deliveries of a key that was delivered before, conflicts included.
        conflicts: Those of the duplicates whose content differs from the first delivery's.
        rejected: Malformed deliveries, one of each of :data:`MALFORMED_KINDS`.
        lines_by_file: Deliveries in each event file, by file name, in load order.
        totals_rows: Rows in the totals file, without the header.
    """

    september_events: Path
    october_events: Path
    sessions: Path
    cloud_events: Path
    independent_totals: Path
    deliveries: int
    accepted: int
    duplicates: int
    conflicts: int
    rejected: int
    lines_by_file: Mapping[str, int]
    totals_rows: int

    @property
    def billing_periods(self) -> tuple[str, ...]:
        """Months in which these events are billed, and the fees in advance before and after them, ``YYYY-MM``."""
        return ("2026-08", "2026-09", "2026-10")

    @property
    def event_files(self) -> tuple[Path, Path, Path, Path]:
        """The event files in the order in which they are to be loaded."""
        return (self.september_events, self.october_events, self.sessions, self.cloud_events)


@dataclass(frozen=True, slots=True)
class _Event:
    key: str
    event_type: str
    customer_id: str
    occurred_at: datetime
    properties: dict[str, str | int]


@dataclass(frozen=True, slots=True)
class _Delivery:
    file: str
    arrived_at: datetime
    line: str


def write_demo_data(folder: Path, *, events: int = 20_000, seed: int = 20261001) -> DemoData:
    """Write the event files and the totals file into a folder; the same arguments give the same bytes.

    Events lie in September and October 2026 (UTC), for :data:`CUSTOMER_IDS`, 80 % ``llm_request`` and 20 %
    ``assistant_session``. On top of ``events`` come 2 % identical copies, 3 conflicting copies and
    9 malformed deliveries. Below about 9,000 events these 9 exceed the 0.1 % that the ingestion guard
    tolerates.

    Args:
        folder: Where to write; created if missing, files of the same names are overwritten.
        events: Distinct valid events, 200 or more.
        seed: Seed of the random generator.

    Returns:
        The paths written and the counts that staging must arrive at.

    Raises:
        ValueError: If ``events`` is below 200.
        OSError: If the folder cannot be written.
    """
    if events < _MINIMUM_EVENTS:
        raise ValueError(f"{events} events are too few for every kind of delivery; ask for {_MINIMUM_EVENTS} or more")
    # A seeded Mersenne Twister is what makes the files repeatable; nothing here is a secret.
    rng = random.Random(seed)

    clean = _draw_events(rng, events)
    home_file = _assign_files(rng, clean)
    first_deliveries = [
        _deliver(event, home_file[event.key], event.occurred_at + timedelta(seconds=rng.expovariate(0.5)))
        for event in clean
    ]
    arrived_at = {event.key: delivery.arrived_at for event, delivery in zip(clean, first_deliveries, strict=True)}

    conflicts = _draw_conflicts(rng, clean, home_file, arrived_at)
    undisputed = [event for event in clean if event.key not in conflicts]
    copies = _draw_copies(rng, undisputed, home_file, arrived_at, count=round(events * _COPY_SHARE))
    malformed = _draw_malformed(rng)

    deliveries = [*first_deliveries, *copies, *conflicts.values(), *malformed]
    lines_by_file: dict[str, list[str]] = {file: [] for file in LOAD_ORDER}
    for delivery in sorted(deliveries, key=lambda delivery: delivery.arrived_at):
        lines_by_file[delivery.file].append(delivery.line)

    folder.mkdir(parents=True, exist_ok=True)
    for file, lines in lines_by_file.items():
        header = [_csv_line(EVENT_COLUMNS)] if file == SESSIONS_FILE else []
        _write_lines(folder / file, [*header, *lines])
    totals = _independent_totals(clean)
    _write_lines(folder / TOTALS_FILE, [_csv_line(row) for row in (TOTALS_COLUMNS, *totals)])

    return DemoData(
        september_events=folder / SEPTEMBER_FILE,
        october_events=folder / OCTOBER_FILE,
        sessions=folder / SESSIONS_FILE,
        cloud_events=folder / CLOUD_EVENTS_FILE,
        independent_totals=folder / TOTALS_FILE,
        deliveries=len(deliveries),
        accepted=len(clean),
        duplicates=len(copies) + len(conflicts),
        conflicts=len(conflicts),
        rejected=len(malformed),
        lines_by_file=MappingProxyType({file: len(lines) for file, lines in lines_by_file.items()}),
        totals_rows=len(totals),
    )


# --- events -------------------------------------------------------------------------------------------------


def _draw_events(rng: random.Random, count: int) -> list[_Event]:
    """Draw the distinct events, in no particular order of time."""
    llm_count = round(count * _LLM_SHARE)
    # The largest customer has about a quarter of the traffic, the smallest about 4 %.
    customer_weights = list(itertools.accumulate((number + 1) ** -0.7 for number in range(len(CUSTOMER_IDS))))
    hour_weights = list(itertools.accumulate(_HOUR_WEIGHTS))
    days = (_NOVEMBER - _SEPTEMBER).days

    events = []
    for number in range(count):
        customer_number = rng.choices(range(len(CUSTOMER_IDS)), cum_weights=customer_weights)[0]
        occurred_at = _SEPTEMBER + timedelta(
            days=rng.randrange(days),
            hours=rng.choices(range(24), cum_weights=hour_weights)[0],
            microseconds=rng.randrange(3_600_000_000),
        )
        if number < len(_BOUNDARY_INSTANTS):
            occurred_at = _BOUNDARY_INSTANTS[number]
        if number < llm_count:
            event_type, properties = "llm_request", _llm_properties(rng)
        else:
            event_type, properties = "assistant_session", _session_properties(rng, customer_number)
        events.append(
            _Event(
                key=str(uuid.UUID(int=rng.getrandbits(128), version=4)),
                event_type=event_type,
                customer_id=CUSTOMER_IDS[customer_number],
                occurred_at=occurred_at,
                properties=properties,
            )
        )
    return events


def _llm_properties(rng: random.Random) -> dict[str, str | int]:
    service = "code" if rng.random() < _CODE_SHARE else "conversation"
    context_tokens = int(rng.lognormvariate(*_CONTEXT_TOKENS[service]))
    generated_tokens = int(rng.lognormvariate(*_GENERATED_TOKENS[service]))
    properties: dict[str, str | int] = {
        "service": service,
        "context_tokens": min(max(context_tokens, 1), _MAX_CONTEXT_TOKENS),
        "generated_tokens": min(generated_tokens, _MAX_GENERATED_TOKENS),
    }
    if rng.random() < _MODEL_GIVEN_SHARE:
        properties["model"] = "large" if rng.random() < 0.25 else "small"
    return properties


def _session_properties(rng: random.Random, customer_number: int) -> dict[str, str | int]:
    # 60 users at the largest customer down to 5 at the smallest. The square makes some of them heavy users.
    # User ids repeat from customer to customer, because they identify a user only within one.
    users = 60 // (customer_number + 1)
    user = int(users * rng.random() ** 2)
    milliseconds = int(1000 * rng.lognormvariate(*_SESSION_SECONDS))
    milliseconds = min(max(milliseconds, 1000), _MAX_SESSION_MILLISECONDS)
    decimals = rng.choice((0, 1, 2, 3, 3, 3))
    seconds = Decimal(milliseconds).scaleb(-3).quantize(Decimal(1).scaleb(-decimals))
    return {"user_id": f"user_{user:02d}", "duration_seconds": str(seconds)}


def _assign_files(rng: random.Random, events: Iterable[_Event]) -> dict[str, str]:
    """Say in which file each key is delivered first: ``{idempotency key: file name}``."""
    files = {}
    october_keys = []
    for event in events:
        if event.event_type == "assistant_session":
            files[event.key] = SESSIONS_FILE
        elif event.occurred_at < _OCTOBER:
            files[event.key] = SEPTEMBER_FILE
        else:
            files[event.key] = OCTOBER_FILE
            october_keys.append(event.key)
    # An event is sent through one door only: a CloudEvent's idempotency key is built from its source and id,
    # so a copy through another door would be another key.
    for key in rng.sample(october_keys, round(len(october_keys) * _CLOUD_EVENTS_SHARE)):
        files[key] = CLOUD_EVENTS_FILE
    return files


# --- deliveries ---------------------------------------------------------------------------------------------


def _draw_copies(
    rng: random.Random,
    originals: list[_Event],
    home_file: Mapping[str, str],
    arrived_at: Mapping[str, datetime],
    count: int,
) -> list[_Delivery]:
    """Deliver some events again, unchanged and later: in the same file, or September's in October's file."""
    copies = []
    # With replacement: now and then a key arrives three times.
    for event in rng.choices(originals, k=count):
        file = home_file[event.key]
        again_at = arrived_at[event.key] + timedelta(seconds=1 + rng.expovariate(1 / 3600))
        if file == SEPTEMBER_FILE and rng.random() < _COPY_IN_NEXT_FILE_SHARE:
            file, again_at = OCTOBER_FILE, _instant_in_october(rng)
        copies.append(_deliver(event, file, again_at))
    return copies


def _draw_conflicts(
    rng: random.Random,
    events: Iterable[_Event],
    home_file: Mapping[str, str],
    arrived_at: Mapping[str, datetime],
) -> dict[str, _Delivery]:
    """Deliver three keys again with other content, later in the same file or in the next: one per key."""
    events_by_file: dict[str, list[_Event]] = defaultdict(list)
    for event in events:
        events_by_file[home_file[event.key]].append(event)
    within_september, across_files = rng.sample(events_by_file[SEPTEMBER_FILE], 2)
    within_october = rng.choice(events_by_file[OCTOBER_FILE])

    def minutes_after(event: _Event) -> datetime:
        return arrived_at[event.key] + timedelta(minutes=rng.randint(1, 600))

    conflicts = {}
    for original, file, again_at in (
        (within_september, SEPTEMBER_FILE, minutes_after(within_september)),
        (across_files, OCTOBER_FILE, _instant_in_october(rng)),
        (within_october, OCTOBER_FILE, minutes_after(within_october)),
    ):
        generated_tokens = (int(original.properties["generated_tokens"]) + rng.randint(1, 500)) % (
            _MAX_GENERATED_TOKENS + 1
        )
        contradiction = _Event(
            key=original.key,
            event_type=original.event_type,
            customer_id=original.customer_id,
            occurred_at=original.occurred_at,
            properties={**original.properties, "generated_tokens": generated_tokens},
        )
        conflicts[original.key] = _deliver(contradiction, file, again_at)
    return conflicts


def _draw_malformed(rng: random.Random) -> list[_Delivery]:
    """Make one delivery of each of :data:`MALFORMED_KINDS`, valid but for the one thing its kind names."""
    deliveries = []
    for kind in MALFORMED_KINDS:
        arrived_at = _instant_in_october(rng)
        properties: dict[str, object] = {**_llm_properties(rng)}
        body: dict[str, object] = {
            "idempotency_key": f"malformed-{kind.replace('_', '-')}",
            "event_type": "llm_request",
            "schema_version": 1,
            "customer_id": rng.choice(CUSTOMER_IDS),
            "occurred_at": _timestamp(arrived_at),
            "properties": properties,
        }
        match kind:
            case "missing_customer_id":
                del body["customer_id"]
            case "unknown_event_type":
                body["event_type"] = "image_request"
            case "unknown_schema_version":
                body["schema_version"] = 99
            case "missing_context_tokens":
                del properties["context_tokens"]
            case "generated_tokens_not_a_number":
                properties["generated_tokens"] = "many"
            case "context_tokens_out_of_range":
                properties["context_tokens"] = -5
            case "service_not_allowed":
                properties["service"] = "telepathy"
            case "occurred_at_unparseable":
                body["occurred_at"] = "yesterday"
        line = _compact_json(body)
        if kind == "broken_json":
            line = line[: line.index('"occurred_at"') + 6]
        deliveries.append(_Delivery(OCTOBER_FILE, arrived_at, line))
    return deliveries


def _instant_in_october(rng: random.Random) -> datetime:
    return _OCTOBER + timedelta(microseconds=rng.randrange((_NOVEMBER - _OCTOBER) // _MICROSECOND))


def _deliver(event: _Event, file: str, arrived_at: datetime) -> _Delivery:
    return _Delivery(file, arrived_at, _RENDERERS[file](event))


# --- formats ------------------------------------------------------------------------------------------------


def _as_json(event: _Event) -> str:
    return _compact_json(
        {
            "idempotency_key": event.key,
            "event_type": event.event_type,
            "schema_version": 1,
            "customer_id": event.customer_id,
            "occurred_at": _timestamp(event.occurred_at),
            "properties": event.properties,
        }
    )


def _as_csv(event: _Event) -> str:
    occurred_at, properties = _timestamp(event.occurred_at), _compact_json(event.properties)
    return _csv_line((event.key, event.event_type, "1", event.customer_id, occurred_at, properties))


def _as_cloud_event(event: _Event) -> str:
    """Render in the CloudEvents JSON format ("JSON Event Format for CloudEvents - Version 1.0.2")."""
    return _compact_json(
        {
            "specversion": "1.0",
            "id": event.key,
            "source": CLOUD_EVENTS_SOURCE,
            "type": event.event_type,
            "subject": event.customer_id,
            "time": _timestamp(event.occurred_at),
            "data": event.properties,
        }
    )


_RENDERERS: dict[str, Callable[[_Event], str]] = {
    SEPTEMBER_FILE: _as_json,
    OCTOBER_FILE: _as_json,
    SESSIONS_FILE: _as_csv,
    CLOUD_EVENTS_FILE: _as_cloud_event,
}


def _timestamp(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _compact_json(value: Mapping[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _csv_line(cells: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write UTF-8 lines ended by a line feed, gzipped if the name says so."""
    content = "".join(f"{line}\n" for line in lines).encode()
    if path.suffix == ".gz":
        buffer = io.BytesIO()
        # No file name and no time in the header: both would make two runs differ.
        with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as compressed:
            compressed.write(content)
        content = buffer.getvalue()
    path.write_bytes(content)


# --- totals -------------------------------------------------------------------------------------------------


def _independent_totals(events: Iterable[_Event]) -> list[tuple[str, ...]]:
    """Sum the events, each key once, per metric, customer, dimensions and UTC calendar month.

    Returns:
        Rows in the order of :data:`TOTALS_COLUMNS`, sorted. Quantities are exact decimals in plain notation:
        requests, tokens, users or seconds. A group without an event has no row.
    """
    quantities: dict[tuple[str, str, str, datetime, datetime], Decimal] = defaultdict(Decimal)
    active_users: dict[tuple[str, str, str, datetime, datetime], set[str]] = defaultdict(set)
    for event in events:
        properties = event.properties
        start, end = next(period for period in _PERIODS if period[0] <= event.occurred_at < period[1])
        undivided = (event.customer_id, "", start, end)
        if event.event_type == "llm_request":
            by_service = (event.customer_id, _compact_json({"service": properties["service"]}), start, end)
            context_tokens = Decimal(properties["context_tokens"])
            longest_context = quantities["longest_context", *undivided]
            quantities["requests", *undivided] += 1
            quantities["context_tokens", *undivided] += context_tokens
            quantities["generated_tokens", *by_service] += Decimal(properties["generated_tokens"])
            quantities["longest_context", *undivided] = max(longest_context, context_tokens)
            if properties["service"] == "code":
                quantities["code_requests", *undivided] += 1
        else:
            active_users["active_users", *undivided].add(str(properties["user_id"]))
            quantities["session_seconds", *undivided] += Decimal(properties["duration_seconds"])
    quantities.update({group: Decimal(len(users)) for group, users in active_users.items()})

    totals: list[tuple[str, ...]] = []
    for (metric_code, customer_id, dimensions, start, end), quantity in sorted(quantities.items()):
        period = (f"{start:%Y-%m-%dT%H:%M:%SZ}", f"{end:%Y-%m-%dT%H:%M:%SZ}")
        totals.append((metric_code, customer_id, dimensions, *period, f"{quantity:f}", TOTALS_SOURCE))
    return totals
