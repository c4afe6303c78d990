"""Spreads calls over time, so that no second has more of them than Stripe allows."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Calls that are at least a given part of a second apart.

    Args:
        per_second: how many calls a second may have.
        sleep: waits the given seconds.
        clock: seconds that only grow.
    """

    def __init__(
        self, per_second: int, sleep: Callable[[float], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._apart = 1 / per_second
        self._sleep = sleep
        self._clock = clock
        self._next = clock()

    def wait(self) -> None:
        """Wait until the next call may begin."""
        now = self._clock()
        if now < self._next:
            self._sleep(self._next - now)
        self._next = max(now, self._next) + self._apart
