"""Meters: made, listed and retrieved; events taken, checked once more later, and summed by minutes."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from stripe.params.billing import (
    MeterCreateParams,
    MeterEventCreateParams,
    MeterListEventSummariesParams,
    MeterListParams,
    MeterRetrieveParams,
)
from stripe.params.v2.core import EventListParams

from .errors import ApiError, missing_object
from .parameters import (
    FormValue,
    ParameterSet,
    Reader,
    missing_parameter,
    one_of,
    read_integer,
    read_limit,
    read_string,
    unknown_parameter,
)
from .store import MeterEvent, Store, StoredObject

METERS = "/v1/billing/meters"
METER_EVENTS = "/v1/billing/meter_events"
CORE_EVENTS = "/v2/core/events"
KIND = "billing.meter"

SECONDS_PER_DAY = 24 * 60 * 60
# Stripe API reference, "Create a billing meter event".
NAME_CHARACTERS = 100
OLDEST_SECONDS = 35 * SECONDS_PER_DAY
FUTURE_SECONDS = 5 * 60
UNIQUE_SECONDS = SECONDS_PER_DAY
# Stripe docs, "Configure meters": incorrect usage may be fixed by recording negative quantities.
VALUE = re.compile(r"-?[0-9]+")
VALUE_DIGITS = 15
# As in the example of a report in the API reference, "The Event object" of v2; Stripe names only some events of many.
REPORT_SECONDS = 10
REPORT_SAMPLES = 5
REPORT_TYPE = "v1.billing.meter.error_report_triggered"
NO_METER_TYPE = "v1.billing.meter.no_meter_found"
NO_METER = "no_meter"


@dataclass(frozen=True)
class Fault:
    """What is wrong with an event: the code that Stripe has for it, and the parameter at fault."""

    code: str
    message: str
    param: str


def _group(**readers: Reader) -> Reader:
    """A reader of a group that has exactly these members."""

    def read(name: str, value: FormValue) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ApiError(400, f"Invalid {name}: must be a group of values", param=name)
        for member in value:
            if member not in readers:
                raise unknown_parameter(f"{name}[{member}]")
        for member in readers:
            if member not in value:
                raise missing_parameter(f"{name}[{member}]")
        return {member: reader(f"{name}[{member}]", value[member]) for member, reader in readers.items()}

    return read


def read_name(name: str, value: FormValue) -> str:
    """Of at most 100 characters."""
    text = read_string(name, value)
    if len(text) > NAME_CHARACTERS:
        raise ApiError(400, f"Invalid string: {name} has at most {NAME_CHARACTERS} characters", param=name)
    return text


def read_payload(name: str, value: FormValue) -> dict[str, str]:
    """String to string."""
    if not isinstance(value, dict):
        raise ApiError(400, f"Invalid {name}: must be a group of values", param=name)
    return {key: read_string(f"{name}[{key}]", text) for key, text in value.items()}


def _read_minute(name: str, value: FormValue) -> int:
    seconds = read_integer(name, value)
    if seconds % 60:
        raise ApiError(400, f"Invalid {name}: {seconds} is not aligned with minute boundaries", param=name)
    return seconds


def _read_list(name: str, value: FormValue) -> list[str]:
    if not isinstance(value, dict):
        raise ApiError(400, f"Invalid {name}: must be a list", param=name)
    return [read_string(f"{name}[{position}]", text) for position, text in value.items()]


def _read_instant(name: str, value: FormValue) -> float:
    try:
        return datetime.fromisoformat(read_string(name, value)).timestamp()
    except ValueError as error:
        raise ApiError(400, f"Invalid {name}: must be a timestamp", param=name) from error


CREATE_METER = ParameterSet(
    MeterCreateParams,
    {
        "event_name": read_name,
        "display_name": read_string,
        "default_aggregation": _group(formula=one_of("count", "last", "sum")),
        "customer_mapping": _group(event_payload_key=read_string, type=one_of("by_id")),
        "value_settings": _group(event_payload_key=read_string),
    },
    required=("event_name", "display_name", "default_aggregation"),
)
LIST_METERS = ParameterSet(
    MeterListParams, {"limit": read_limit, "starting_after": read_string, "status": one_of("active", "inactive")}
)
RETRIEVE_METER = ParameterSet(MeterRetrieveParams)
CREATE_EVENT = ParameterSet(
    MeterEventCreateParams,
    {"event_name": read_name, "payload": read_payload, "identifier": read_name, "timestamp": read_integer},
    required=("event_name", "payload"),
)
SUMMARIES = ParameterSet(
    MeterListEventSummariesParams,
    {"customer": read_string, "start_time": _read_minute, "end_time": _read_minute, "limit": read_limit},
    required=("customer", "start_time", "end_time"),
)
LIST_CORE_EVENTS = ParameterSet(
    EventListParams, {"types": _read_list, "created": _group(gte=_read_instant), "limit": read_limit}
)


class Meters:
    """The meters' endpoints over a `Store`.

    Args:
        store: the state.
        clock: gives the present in seconds since 1970 UTC.
        new_id: makes a random id from a prefix and a number of characters.
    """

    def __init__(self, store: Store, clock: Callable[[], float], new_id: Callable[[str, int], str]) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id

    def get(self, path: str, pairs: list[tuple[str, str]]) -> dict[str, Any] | None:
        """What a GET answers; None for a path that is not of meters.

        Raises:
            ApiError: an unknown meter, or a wrong parameter.
        """
        if path == METERS:
            return self._list(LIST_METERS.read(pairs))
        if path == CORE_EVENTS:
            return self._error_reports(LIST_CORE_EVENTS.read(pairs))
        meter_id, _, rest = path.removeprefix(f"{METERS}/").partition("/")
        if not path.startswith(f"{METERS}/") or rest not in ("", "event_summaries"):
            return None
        meter = self._store.get(KIND, meter_id)
        if meter is None:
            raise missing_object("meter", meter_id, param="id", in_path=True)
        if rest == "":
            RETRIEVE_METER.read(pairs)
            return _render(meter)
        return self._summaries(path, meter, SUMMARIES.read(pairs))

    def action(self, path: str, pairs: list[tuple[str, str]]) -> Callable[[], dict[str, Any]] | None:
        """What a POST asks for, its parameters read; None for a path that is not of meters."""
        if path == METERS:
            return partial(self._create, CREATE_METER.read(pairs))
        if path == METER_EVENTS:
            return partial(self._take_event, CREATE_EVENT.read(pairs))
        return None

    def _list(self, parameters: dict[str, Any]) -> dict[str, Any]:
        after = parameters.get("starting_after")
        if after is not None and self._store.get(KIND, after) is None:
            raise missing_object("meter", after, param="starting_after")
        rows, has_more = self._store.page(
            KIND,
            equal={name: parameters[name] for name in ("status",) if name in parameters},
            pending=None,
            created={},
            after=after,
            limit=parameters.get("limit", 10),
        )
        return {"object": "list", "url": METERS, "has_more": has_more, "data": [_render(row) for row in rows]}

    def _create(self, parameters: dict[str, Any]) -> dict[str, Any]:
        now = int(self._clock())
        event_name = parameters["event_name"]
        if self._active_meter(event_name) is not None:
            raise ApiError(
                400, f"An active meter with the event name '{event_name}' already exists.", param="event_name"
            )
        body = {
            "event_name": event_name,
            "display_name": parameters["display_name"],
            "default_aggregation": parameters["default_aggregation"],
            "customer_mapping": parameters.get(
                "customer_mapping", {"event_payload_key": "stripe_customer_id", "type": "by_id"}
            ),
            "value_settings": parameters.get("value_settings", {"event_payload_key": "value"}),
            "event_time_window": None,
            "status_transitions": {"deactivated_at": None},
            "updated": now,
        }
        meter = StoredObject(KIND, self._new_id("mtr", 24), None, None, "active", now, body)
        self._store.insert(meter)
        return _render(meter)

    def _meters_named(self, event_name: str) -> list[StoredObject]:
        """The meters of a name, an active one first: of those there is one at most."""
        named = [meter for meter in self._store.all(KIND) if meter.body["event_name"] == event_name]
        return sorted(named, key=lambda meter: meter.status != "active")

    def _active_meter(self, event_name: str) -> StoredObject | None:
        return next((meter for meter in self._meters_named(event_name) if meter.status == "active"), None)

    def _take_event(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Check what Stripe checks at once; the customer is looked for afterwards, and a wrong one never counts."""
        now = int(self._clock())
        event_name, payload = parameters["event_name"], parameters["payload"]
        timestamp = parameters.get("timestamp", now)
        identifier = parameters.get("identifier", self._new_id("mtrev", 24))
        fault = self._find_fault(event_name, payload, timestamp, now)
        if fault is not None:
            raise ApiError(400, fault.message, code=fault.code, param=fault.param)
        if self._store.find_meter_event(identifier, not_before=now - UNIQUE_SECONDS) is not None:
            raise ApiError(
                400,
                f"An event already exists with identifier {identifier}.",
                param="identifier",
                headers={"Stripe-Should-Retry": "false"},
            )
        self._insert(identifier, event_name, payload, timestamp, now, None)
        return {
            "object": "billing.meter_event",
            "created": now,
            "event_name": event_name,
            "identifier": identifier,
            "livemode": False,
            "payload": payload,
            "timestamp": timestamp,
        }

    def take_unchecked(self, event: dict[str, Any]) -> None:
        """Take an event of the stream: an invalid one does not count and is reported, a second one is dropped."""
        now = int(self._clock())
        identifier = event.get("identifier", self._new_id("mtrev", 24))
        if self._store.find_meter_event(identifier, not_before=now - UNIQUE_SECONDS) is not None:
            return
        event_name, payload, timestamp = event["event_name"], event["payload"], event.get("timestamp", now)
        fault = self._find_fault(event_name, payload, timestamp, now)
        self._insert(identifier, event_name, payload, timestamp, now, None if fault is None else fault.code)

    def _insert(
        self, identifier: str, event_name: str, payload: dict[str, str], timestamp: int, now: int, code: str | None
    ) -> None:
        customer, value = "", 0
        if code is None:
            (meter, *_) = self._meters_named(event_name)
            customer = payload[meter.body["customer_mapping"]["event_payload_key"]]
            value = int(payload[meter.body["value_settings"]["event_payload_key"]])
            if self._store.get("customer", customer) is None:
                code = "meter_event_customer_not_found"
        self._store.insert_meter_event(MeterEvent(identifier, event_name, customer, value, timestamp, now, code))

    def _find_fault(self, event_name: str, payload: dict[str, str], timestamp: int, now: int) -> Fault | None:
        """The first thing that is wrong with an event, but for its customer."""
        meters = self._meters_named(event_name)
        if not meters:
            return Fault(NO_METER, f"No active meter found for event name '{event_name}'.", "event_name")
        if meters[0].status != "active":
            return Fault("archived_meter", f"The meter of event name '{event_name}' is archived.", "event_name")
        if timestamp < now - OLDEST_SECONDS:
            return Fault(
                "timestamp_too_far_in_past", "The timestamp must be within the past 35 calendar days.", "timestamp"
            )
        if timestamp > now + FUTURE_SECONDS:
            return Fault("timestamp_in_future", "The timestamp must be at most 5 minutes in the future.", "timestamp")
        value_key = meters[0].body["value_settings"]["event_payload_key"]
        customer_key = meters[0].body["customer_mapping"]["event_payload_key"]
        if customer_key not in payload:
            return Fault("meter_event_no_customer_defined", f"The payload lacks '{customer_key}'.", "payload")
        value = payload.get(value_key, "")
        if VALUE.fullmatch(value) is None:
            message = f"The payload's '{value_key}' is {value!r}: a whole number is needed."
            return Fault("meter_event_invalid_value", message, "payload")
        if len(value.lstrip("-")) > VALUE_DIGITS:
            message = f"The payload's '{value_key}' has more than {VALUE_DIGITS} digits."
            return Fault("meter_event_value_too_many_digits", message, "payload")
        return None

    def _summaries(self, path: str, meter: StoredObject, parameters: dict[str, Any]) -> dict[str, Any]:
        start, end = parameters["start_time"], parameters["end_time"]
        if end <= start:
            raise ApiError(400, f"Invalid end_time: {end} is not after start_time {start}", param="end_time")
        events = self._store.meter_events(meter.body["event_name"], parameters["customer"], start, end)
        values = [event.value for event in events if event.error_code is None]
        formula = meter.body["default_aggregation"]["formula"]
        totals = {"sum": sum(values), "count": len(values), "last": values[-1] if values else 0}
        data = [
            {
                "id": f"mtrusg_{meter.id}_{start}_{end}",
                "object": "billing.meter_event_summary",
                "aggregated_value": float(totals[formula]),
                "start_time": start,
                "end_time": end,
                "livemode": False,
                "meter": meter.id,
            }
        ]
        return {"object": "list", "url": path, "has_more": False, "data": data if values else []}

    def _error_reports(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """A report for each window that is over and meter, or names without one; newest first, all on one page."""
        windows: dict[tuple[int, str], list[MeterEvent]] = defaultdict(list)
        for event in self._store.all_meter_events():
            end = (event.received // REPORT_SECONDS + 1) * REPORT_SECONDS
            if event.error_code is None or not parameters.get("created", {}).get("gte", 0) <= end <= self._clock():
                continue
            is_of_meter = event.error_code != NO_METER
            if (REPORT_TYPE if is_of_meter else NO_METER_TYPE) in parameters.get("types", [REPORT_TYPE, NO_METER_TYPE]):
                windows[end, event.event_name if is_of_meter else ""].append(event)
        return {
            "data": [self._error_report(*window, windows[window]) for window in sorted(windows, reverse=True)],
            "next_page_url": None,
            "previous_page_url": None,
        }

    def _error_report(self, end: int, event_name: str, events: list[MeterEvent]) -> dict[str, Any]:
        meter = self._meters_named(event_name)[0] if event_name else None
        by_code: dict[str, list[MeterEvent]] = defaultdict(list)
        for event in events:
            by_code[str(event.error_code)].append(event)
        return {
            "id": f"evt_test_{NO_METER if meter is None else meter.id}_{end}",
            "object": "v2.core.event",
            "type": NO_METER_TYPE if meter is None else REPORT_TYPE,
            "context": None,
            "created": instant(end),
            "livemode": False,
            "reason": None,
            "related_object": None if meter is None else {"id": meter.id, "type": KIND, "url": f"{METERS}/{meter.id}"},
            "data": {
                "developer_message_summary": f"There are {len(events)} invalid events",
                "validation_start": instant(end - REPORT_SECONDS),
                "validation_end": instant(end),
                "reason": {
                    "error_count": len(events),
                    "error_types": [
                        {
                            "code": code,
                            "error_count": len(of_code),
                            "sample_errors": [
                                {
                                    "error_message": f"Event of {event.event_name}: {code}.",
                                    "request": {"identifier": event.identifier},
                                }
                                for event in of_code[:REPORT_SAMPLES]
                            ],
                        }
                        for code, of_code in sorted(by_code.items())
                    ],
                },
            },
        }


def instant(seconds: int) -> str:
    """Seconds since 1970 UTC as the v2 API writes them."""
    return f"{datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def _render(meter: StoredObject) -> dict[str, Any]:
    rendered: dict[str, Any] = json.loads(json.dumps(meter.body))
    return {
        "id": meter.id,
        "object": KIND,
        "livemode": False,
        "created": meter.created,
        "status": meter.status,
        **rendered,
    }
