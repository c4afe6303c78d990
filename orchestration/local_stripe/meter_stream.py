"""The v2 stream of meter events: sessions, and batches that are taken at once and checked afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from stripe.params.v2.billing import (
    MeterEventSessionCreateParams,
    MeterEventStreamCreateParams,
    MeterEventStreamCreateParamsEvent,
)

from .errors import ApiError
from .meters import Meters, instant, read_name, read_payload
from .parameters import FormValue, ParameterSet, read_string
from .store import Store, StoredObject

SESSIONS = "/v2/billing/meter_event_session"
STREAM = "/v2/billing/meter_event_stream"
KIND = "v2.billing.meter_event_session"

# Stripe API reference, "Create billing meter event stream authentication session".
SESSION_SECONDS = 15 * 60
# As above, "Create a billing meter event with asynchronous validation".
EVENTS_PER_CALL = 100


def read_json(text: str) -> dict[str, FormValue]:
    """A body of the v2 API as nested values; what is no string, list or object there is refused, as no endpoint has it.

    Raises:
        ApiError: 400 for what is no JSON object of strings.
    """
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise ApiError(400, f"Invalid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(400, "Invalid JSON: the body must be an object.")
    return {name: _read_value(name, member) for name, member in value.items()}


def _read_value(name: str, value: Any) -> FormValue:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        value = {str(position): member for position, member in enumerate(value)}
    if not isinstance(value, dict):
        raise ApiError(400, f"Invalid {name}: {json.dumps(value)} is no string", param=name)
    return {key: _read_value(f"{name}[{key}]", member) for key, member in value.items()}


def _read_instant(name: str, value: FormValue) -> int:
    text = read_string(name, value)
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise ApiError(400, f"Invalid {name}: {text} is no RFC 3339 timestamp", param=name) from error
    if at.tzinfo is None:
        raise ApiError(400, f"Invalid {name}: {text} has no offset from UTC", param=name)
    return int(at.astimezone(UTC).timestamp())


EVENT = ParameterSet(
    MeterEventStreamCreateParamsEvent,
    {"event_name": read_name, "identifier": read_name, "payload": read_payload, "timestamp": _read_instant},
    required=("event_name", "payload"),
)


def _read_events(name: str, value: FormValue) -> list[dict[str, Any]]:
    if not isinstance(value, dict) or not value:
        raise ApiError(400, f"Invalid {name}: must be a list of events", param=name)
    if len(value) > EVENTS_PER_CALL:
        raise ApiError(400, f"Invalid {name}: {len(value)} events, at most {EVENTS_PER_CALL} are allowed", param=name)
    events = []
    for position, event in value.items():
        where = f"{name}[{position}]"
        if not isinstance(event, dict):
            raise ApiError(400, f"Invalid {where}: must be an event", param=where)
        events.append(EVENT.read_group(event, where))
    return events


CREATE_SESSION = ParameterSet(MeterEventSessionCreateParams)
CREATE_EVENTS = ParameterSet(MeterEventStreamCreateParams, {"events": _read_events}, required=("events",))


class MeterStream:
    """The stream's endpoints over a `Store`.

    Args:
        store: the state.
        clock: gives the present in seconds since 1970 UTC.
        new_id: makes a random id from a prefix and a number of characters.
        meters: takes the events.
    """

    def __init__(
        self, store: Store, clock: Callable[[], float], new_id: Callable[[str, int], str], meters: Meters
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._meters = meters

    def post(self, path: str, text: str, token: str) -> dict[str, Any] | None:
        """What a POST does; None for a path that is not of the stream.

        Args:
            path: of the endpoint.
            text: the body.
            token: of the session, for events; another key was looked at before.

        Raises:
            ApiError: a wrong parameter, or no session that is valid.
        """
        if path == SESSIONS:
            CREATE_SESSION.read_group(read_json(text))
            return self._open_session()
        if path == STREAM:
            self._check_session(token)
            for event in CREATE_EVENTS.read_group(read_json(text))["events"]:
                self._meters.take_unchecked(event)
            return {}
        return None

    def _open_session(self) -> dict[str, Any]:
        now = int(self._clock())
        session = StoredObject(
            KIND, self._new_id("mes", 24), None, None, None, now, {"authentication_token": self._new_id("token", 40)}
        )
        self._store.insert(session)
        return {
            "id": session.id,
            "object": KIND,
            "livemode": False,
            "created": instant(now),
            "expires_at": instant(now + SESSION_SECONDS),
            **session.body,
        }

    def _check_session(self, token: str) -> None:
        """
        Raises:
            ApiError: 401, also with the code by which Stripe says that a session is over.
        """
        sessions = self._store.all(KIND)
        session = next((found for found in sessions if found.body["authentication_token"] == token), None)
        if session is None:
            raise ApiError(401, "The stream takes the token of a meter event session, and this is none.")
        if self._clock() >= session.created + SESSION_SECONDS:
            raise ApiError(
                401,
                "The session has expired. Create another.",
                code="billing_meter_event_session_expired",
                error_type="temporary_session_expired",
            )
