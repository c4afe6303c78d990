"""Peak memory of a server that is several processes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.5


@dataclass
class PeakMemory:
    """Largest total of the proportional set sizes that was seen; pages that processes share count once."""

    bytes: int = 0


@contextlib.contextmanager
def watch_memory(pid: int) -> Iterator[PeakMemory]:
    """Look at a process and its children twice a second until the block ends."""
    peak, ended = PeakMemory(), threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_SECONDS):
            peak.bytes = max(peak.bytes, sum(map(_proportional_size, [pid, *_children(pid)])))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _proportional_size(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # ended meanwhile
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
