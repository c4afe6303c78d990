"""Seconds of the stages of a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stages:
    """Stages with their wall-clock seconds, in the order in which they ran; one measured twice is added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
