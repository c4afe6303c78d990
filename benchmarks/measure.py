"""A command in a process of its own: wall-clock seconds, peak memory, peak size of what DuckDB spilled."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PROJECT = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.02
_GRACE_SECONDS = 60
_SPILL_POLL_SECONDS = 0.2


class BenchmarkError(Exception):
    """A command failed or took too long; the text has the end of its output."""


@dataclass(frozen=True)
class Measurement:
    """What a command took.

    Attributes:
        seconds: wall clock, from start to exit.
        peak_memory_bytes: largest resident size (ru_maxrss of wait4) of the process and the children it waited for.
        peak_spill_bytes: largest total of the files in the watched folder, looked at five times a second.
        output: standard output.
    """

    seconds: float
    peak_memory_bytes: int
    peak_spill_bytes: int
    output: str


def run(
    command: Sequence[str | Path],
    *,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
    spill_folder: Path | None = None,
) -> Measurement:
    """Run a command in the project's folder and measure it.

    Raises:
        BenchmarkError: it exited with an error, or was ended because the time was over.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=PROJECT,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        peak_spill, next_look = 0, 0.0
        try:
            while True:
                # wait4 is asked by hand, since only it gives the memory of this one child.
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                now = time.monotonic()
                if pid:
                    break
                if now - started > timeout_seconds:
                    raise BenchmarkError(
                        f"{_name(command)}: ended after {timeout_seconds:.0f} s; --timeout gives more. "
                        f"{_tail(output, errors)}"
                    )
                if spill_folder is not None and now >= next_look:
                    peak_spill = max(peak_spill, _size(spill_folder))
                    next_look = now + _SPILL_POLL_SECONDS
                time.sleep(_POLL_SECONDS)
        except BaseException:
            _end(process)
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise BenchmarkError(f"{_name(command)}: exit code {process.returncode}. {_tail(output, errors)}")
        output.seek(0)
        return Measurement(now - started, usage.ru_maxrss * 1024, peak_spill, output.read())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, with time for them to end servers of their own."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _size(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        try:
            # Blocks, not the length: a spill file may have holes.
            total += path.stat().st_blocks * 512
        except FileNotFoundError:  # removed meanwhile
            continue
    return total


def _name(command: Sequence[str | Path]) -> str:
    return " ".join(str(part) for part in command[:4])


def _tail(*streams: IO[str]) -> str:
    ends = []
    for stream in streams:
        stream.seek(0)
        ends.append(stream.read()[-2000:])
    return "It said: " + "\n".join(end for end in ends if end)
