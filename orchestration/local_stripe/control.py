"""What a test may do to the local Stripe: move its clock, limit its rate, and let chosen requests go wrong."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import ApiError

FaultKind = Literal[
    "error_before", "error_after", "error_stored", "drop_before", "drop_after", "hang_before", "hang_after",
    "conflict", "rate_limit", "slow",
]  # fmt: skip
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


@dataclass
class Fault:
    """What happens to some of the next requests.

    Attributes:
        kind: `error_before` and `error_after` answer 500 without or after doing what was asked; `error_stored` does it,
            and the idempotency key replays the 500 from then on. `drop_` closes the connection without an answer,
            `hang_` does so after `seconds`; `conflict` is a 409 (key in use), `rate_limit` a 429 with `Retry-After:
            seconds`; `slow` waits `seconds`, then answers as usual.
        method: GET, POST or DELETE; empty for any.
        path: what the path must begin with.
        skip: matching requests to leave alone first.
        times: matching requests that it happens to then.
        seconds: see `kind`.
    """

    kind: FaultKind
    method: str = ""
    path: str = "/"
    skip: int = 0
    times: int = 1
    seconds: float = 0.0


class Control:
    """The test control of one server; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset = 0.0
        self._faults: list[Fault] = []
        self._answered: deque[float] = deque()
        self._injected: list[FaultKind] = []
        self.requests_per_second: int | None = None

    def now(self) -> float:
        """The server's time, seconds since 1970 UTC."""
        return time.time() + self._offset

    def advance(self, seconds: float) -> None:
        """Move the server's clock ahead."""
        with self._lock:
            self._offset += seconds

    def add(self, fault: Fault) -> None:
        """Let requests go wrong; faults are tried in the order in which they were added, one a request."""
        if fault.kind not in FAULT_KINDS:
            raise ValueError(f"fault {fault.kind!r} is none of {', '.join(FAULT_KINDS)}")
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """Forget the faults that have not happened, and the rate limit."""
        with self._lock:
            self._faults.clear()
            self.requests_per_second = None

    @property
    def injected(self) -> tuple[FaultKind, ...]:
        """The faults that have happened, in order; a request that hangs is in it while it hangs."""
        with self._lock:
            return tuple(self._injected)

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that happens to a request, used up by it."""
        with self._lock:
            for fault in self._faults:
                if fault.method not in ("", method) or not path.startswith(fault.path):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if fault.times <= 0:
                    self._faults.remove(fault)
                self._injected.append(fault.kind)
                return fault
        return None

    def check_rate(self) -> None:
        """
        Raises:
            ApiError: 429, when more than `requests_per_second` came within a second (Stripe docs, "Rate limits").
        """
        with self._lock:
            limit = self.requests_per_second
            if limit is None:
                return
            now = time.monotonic()
            while self._answered and self._answered[0] <= now - 1:
                self._answered.popleft()
            if len(self._answered) >= limit:
                raise rate_limited("global-rate")
            self._answered.append(now)


def rate_limited(reason: str, retry_after: float | None = None) -> ApiError:
    """Stripe's 429, with the header that names the limit and, where given, the seconds to wait."""
    headers = {"Stripe-Rate-Limited-Reason": reason}
    if retry_after is not None:
        headers["Retry-After"] = f"{retry_after:g}"
    return ApiError(
        429,
        "Request rate limit exceeded. Learn more about rate limits here https://stripe.com/docs/rate-limits.",
        code="rate_limit",
        headers=headers,
    )


def key_in_use(path: str) -> ApiError:
    """Stripe's 409 for an idempotency key whose first request has not ended."""
    return ApiError(
        409,
        f"There is currently another in-progress request using this idempotency key ({path}). Try again later.",
        code="idempotency_key_in_use",
        error_type="idempotency_error",
        headers={"Stripe-Should-Retry": "true"},
    )


def server_failed() -> ApiError:
    """Stripe's 500."""
    return ApiError(500, "An unknown error occurred.", error_type="api_error")
