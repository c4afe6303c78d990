"""What Stripe's errors mean for the sync, and when a call is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import stripe

from orchestration.lib.project import MeteringError
from orchestration.lib.stripe_target import redact_keys

T = TypeVar("T")
ERROR_BODY_CHARACTERS = 4000

# Stripe docs, "Rate limits": back off exponentially with jitter. The SDK does not retry a 429.
RATE_LIMIT_ATTEMPTS = 6
RATE_LIMIT_SECONDS = 0.5
RATE_LIMIT_LONGEST_SECONDS = 60.0


class StripeSyncError(MeteringError):
    """The sync cannot start or go on. Nothing was lost: run it again once the message's remedy is done."""


class RefusedError(Exception):
    """Stripe refused an object, so that what depends on it cannot be sent either."""


class RefusedCallError(RefusedError):
    """Stripe refused a call that creates something; `error` is its answer."""

    def __init__(self, message: str, error: stripe.StripeError) -> None:
        super().__init__(message)
        self.error = error


class StoppedError(Exception):
    """The run must end: an outcome is unknown, or no request can succeed."""


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
