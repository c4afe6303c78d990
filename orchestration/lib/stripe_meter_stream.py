"""Sends meter events by Stripe's v2 stream: up to 100 in a call, under the token of a session.

Stripe checks events of the stream after it took them, and drops one whose identifier it has seen within 24 hours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import stripe
from stripe.params.billing import MeterEventCreateParams
from stripe.params.v2.billing import MeterEventStreamCreateParamsEvent

from orchestration.lib.stripe_errors import (
    ERROR_BODY_CHARACTERS,
    StoppedError,
    describe_error,
    error_code,
    is_refusal,
    with_backoff,
)
from orchestration.lib.stripe_tables import Step
from orchestration.lib.stripe_target import redact_keys

# Stripe API reference, "Create a billing meter event with asynchronous validation".
EVENTS_PER_CALL = 100
# Of a session's time; it is renewed before.
SESSION_LEFT = timedelta(minutes=1)
SESSION_EXPIRED = "billing_meter_event_session_expired"

# Brings a step of the events with these identifiers into the log, in one transaction.
Record = Callable[[Step, Sequence[str], Mapping[str, Any]], None]


class UnknownOutcomeError(StoppedError):
    """Stripe may have taken the events of a call; `count` says how many these are."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


class MeterStream:
    """The stream of one run.

    Args:
        client: of the account, with its key.
        record: called before each call and after it.
        now: the present in naive UTC.
        sleep: waits the given seconds; called when Stripe limits the rate.
    """

    def __init__(
        self,
        client: stripe.StripeClient,
        record: Record,
        now: Callable[[], datetime],
        sleep: Callable[[float], None],
    ) -> None:
        self._services = client.v2.billing
        self._record = record
        self._now = now
        self._sleep = sleep
        self._token = ""
        self._renew_at = datetime.min

    def send(self, events: Sequence[MeterEventStreamCreateParamsEvent]) -> dict[str, str]:
        """Send at most 100 events. A refused call is taken apart by halves until the event at fault stands alone.

        Args:
            events: each with its identifier.

        Returns:
            Why events were refused, by identifier; Stripe has taken the others.

        Raises:
            UnknownOutcomeError: a call has no known outcome.
            StoppedError: no session can be opened, or the key was refused.
        """
        if not events:
            return {}
        if self._now() >= self._renew_at:
            try:
                with_backoff(self._open_session, self._sleep)
            except stripe.StripeError as error:
                raise StoppedError(
                    f"no session of the meter event stream could be opened: {self._describe(error)}"
                ) from None
        identifiers = [event["identifier"] for event in events]
        name = f"a call of {len(events)} events from {identifiers[0]} on"
        self._record("intent", identifiers, {})
        try:
            with_backoff(lambda: self._call(events), self._sleep)
        except stripe.StripeError as error:
            if not is_refusal(error):
                raise UnknownOutcomeError(
                    f"{name}: {self._describe(error)} It has no known outcome.", len(events)
                ) from None
            answer = {
                "request_id": error.request_id,
                "http_status": error.http_status,
                "error_code": error_code(error),
                "error_body": self._redact(error.http_body or "")[:ERROR_BODY_CHARACTERS],
            }
            self._record("failed", identifiers, answer)
            if error.http_status == 401:
                raise StoppedError(f"{name}: {self._describe(error)} Check STRIPE_API_KEY.") from None
            if len(events) == 1:
                return {identifiers[0]: self._describe(error)}
            half = len(events) // 2
            return self.send(events[:half]) | self.send(events[half:])
        self._record("confirmed", identifiers, {})
        return {}

    def _call(self, events: Sequence[MeterEventStreamCreateParamsEvent]) -> None:
        """One call, and another with a new token where Stripe says that the session is over before its time."""
        try:
            self._services.meter_event_stream.create({"events": list(events)}, {"api_key": self._token})
        except stripe.StripeError as error:
            if not is_session_expired(error):
                raise
            self._open_session()
            self._services.meter_event_stream.create({"events": list(events)}, {"api_key": self._token})

    def _open_session(self) -> None:
        asked_at = self._now()
        session = self._services.meter_event_session.create()
        # By its length: this machine's clock and Stripe's may disagree.
        length = datetime.fromisoformat(session.expires_at) - datetime.fromisoformat(session.created)
        self._token = session.authentication_token
        self._renew_at = asked_at + length - SESSION_LEFT

    def _describe(self, error: stripe.StripeError) -> str:
        return self._redact(describe_error(error))

    def _redact(self, text: str) -> str:
        return redact_keys(text if self._token == "" else text.replace(self._token, "[session token]"))


def stream_event(event: MeterEventCreateParams) -> MeterEventStreamCreateParamsEvent:
    """An event of the v1 API as the stream takes it."""
    return {
        "event_name": event["event_name"],
        "identifier": event["identifier"],
        "timestamp": f"{datetime.fromtimestamp(event['timestamp'], UTC).replace(tzinfo=None).isoformat()}Z",
        "payload": event["payload"],
    }


def is_session_expired(error: stripe.StripeError) -> bool:
    """Whether a call needs a new session; nothing of it was done."""
    body = error.json_body
    details = body.get("error") if isinstance(body, dict) else None
    return isinstance(details, dict) and details.get("code") == SESSION_EXPIRED
