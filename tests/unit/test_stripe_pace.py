"""The limit of calls a second."""

from __future__ import annotations

from orchestration.lib.stripe_pace import Pace


class Clock:
    """Time that moves only when somebody sleeps or a call takes its time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def test_no_second_has_more_calls_than_are_allowed() -> None:
    clock = Clock()
    pace = Pace(1000, clock.sleep, lambda: clock.now)
    calls = []
    for number in range(3000):
        pace.wait()
        calls.append(clock.now)
        # Calls of different lengths, most of them too short.
        clock.now += 0.0001 * (number % 30)
    assert all(later - earlier >= 1 - 1e-9 for earlier, later in zip(calls, calls[1000:], strict=False))
    assert clock.slept > 0


def test_a_pause_gives_no_credit_and_slow_calls_do_not_wait() -> None:
    clock = Clock()
    pace = Pace(2, clock.sleep, lambda: clock.now)
    for _ in range(3):
        pace.wait()
        clock.now += 0.6
    assert clock.slept == 0
    clock.now += 60
    for _ in range(3):
        pace.wait()
    assert clock.slept == 1
