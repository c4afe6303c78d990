"""Meters: made, listed and retrieved; events taken, checked once more later, and summed by minutes."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
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
VALUE = re.compile(r"-?[0-9]{1,15}")
# As in the example of a report in the API reference, "The Event object" of v2; Stripe names only some events of many.
REPORT_SECONDS = 10
REPORT_SAMPLES = 5
REPORT_TYPE = "v1.billing.meter.error_report_triggered"


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


def _read_name(name: str, value: FormValue) -> str:
    text = read_string(name, value)
    if len(text) > NAME_CHARACTERS:
        raise ApiError(400, f"Invalid string: {name} has at most {NAME_CHARACTERS} characters", param=name)
    return text


def _read_payload(name: str, value: FormValue) -> dict[str, str]:
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
        "event_name": _read_name,
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
    {"event_name": _read_name, "payload": _read_payload, "identifier": _read_name, "timestamp": read_integer},
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

    def _active_meter(self, event_name: str) -> StoredObject | None:
        meters = (meter for meter in self._store.all(KIND) if meter.body["event_name"] == event_name)
        return next((meter for meter in meters if meter.status == "active"), None)

    def _take_event(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Check what Stripe checks at once; the customer is looked for afterwards, and a wrong one never counts."""
        now = int(self._clock())
        event_name, payload = parameters["event_name"], parameters["payload"]
        timestamp = parameters.get("timestamp", now)
        identifier = parameters.get("identifier", self._new_id("mtrev", 24))
        meter = self._active_meter(event_name)
        if meter is None:
            raise ApiError(
                400, f"No active meter found for event name '{event_name}'.", code="no_meter", param="event_name"
            )
        if timestamp < now - OLDEST_SECONDS:
            raise ApiError(
                400,
                "The timestamp must be within the past 35 calendar days.",
                code="timestamp_too_far_in_past",
                param="timestamp",
            )
        if timestamp > now + FUTURE_SECONDS:
            raise ApiError(
                400,
                "The timestamp must be at most 5 minutes in the future.",
                code="timestamp_in_future",
                param="timestamp",
            )
        value_key = meter.body["value_settings"]["event_payload_key"]
        customer_key = meter.body["customer_mapping"]["event_payload_key"]
        if customer_key not in payload:
            raise ApiError(
                400,
                f"The payload lacks '{customer_key}'.",
                code="meter_event_no_customer_defined",
                param="payload",
            )
        value = payload.get(value_key, "")
        if VALUE.fullmatch(value) is None:
            raise ApiError(
                400,
                f"The payload's '{value_key}' is {value!r}: a whole number of at most 15 digits is needed.",
                code="meter_event_invalid_value",
                param="payload",
            )
        if self._store.find_meter_event(identifier, not_before=now - UNIQUE_SECONDS) is not None:
            raise ApiError(
                400,
                f"An event already exists with identifier {identifier}.",
                param="identifier",
                headers={"Stripe-Should-Retry": "false"},
            )
        customer = payload[customer_key]
        error = None if self._store.get("customer", customer) else "meter_event_customer_not_found"
        self._store.insert_meter_event(MeterEvent(identifier, event_name, customer, int(value), timestamp, now, error))
        return {
            "object": "billing.meter_event",
            "created": now,
            "event_name": event_name,
            "identifier": identifier,
            "livemode": False,
            "payload": payload,
            "timestamp": timestamp,
        }

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
        """A report for each meter and window of seconds that is over, newest first, all on one page."""
        windows: dict[tuple[int, str], list[MeterEvent]] = defaultdict(list)
        for event in self._store.all_meter_events():
            end = (event.received // REPORT_SECONDS + 1) * REPORT_SECONDS
            if event.error_code is not None and parameters.get("created", {}).get("gte", 0) <= end <= self._clock():
                windows[end, event.event_name].append(event)
        if REPORT_TYPE not in parameters.get("types", [REPORT_TYPE]):
            windows.clear()
        return {
            "data": [self._error_report(*window, windows[window]) for window in sorted(windows, reverse=True)],
            "next_page_url": None,
            "previous_page_url": None,
        }

    def _error_report(self, end: int, event_name: str, events: list[MeterEvent]) -> dict[str, Any]:
        meter = next(meter for meter in self._store.all(KIND) if meter.body["event_name"] == event_name)
        by_code: dict[str, list[MeterEvent]] = defaultdict(list)
        for event in events:
            by_code[str(event.error_code)].append(event)
        return {
            "id": f"evt_test_{meter.id}_{end}",
            "object": "v2.core.event",
            "type": REPORT_TYPE,
            "context": None,
            "created": _instant(end),
            "livemode": False,
            "reason": None,
            "related_object": {"id": meter.id, "type": KIND, "url": f"{METERS}/{meter.id}"},
            "data": {
                "developer_message_summary": f"There are {len(events)} invalid events",
                "validation_start": _instant(end - REPORT_SECONDS),
                "validation_end": _instant(end),
                "reason": {
                    "error_count": len(events),
                    "error_types": [
                        {
                            "code": code,
                            "error_count": len(of_code),
                            "sample_errors": [
                                {
                                    "error_message": f"Event of customer {event.customer}: {code}.",
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


def _instant(seconds: int) -> str:
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
