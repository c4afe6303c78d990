"""A history of so many deliveries, landed and built once; kept for the parts that start from it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import BenchmarkError, Measurement, run
from benchmarks.ours import Build, Product


@dataclass(frozen=True)
class History:
    """A built warehouse, with what landing and building it took."""

    deliveries: int
    product: Product
    load: Measurement
    build: Build


def write_files(folder: Path, deliveries: int, *, timeout_seconds: float) -> list[Path]:
    """Generate the deliveries of a history in a process of its own.

    Raises:
        BenchmarkError: there is no room for them on the disk.
    """
    # A delivery has about 270 bytes in its file and 450 in the warehouse; what is spilled comes and goes.
    needed = deliveries * 800
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BenchmarkError(
            f"{deliveries:,} deliveries need about {needed / 2**30:.0f} GiB of disk, and {free / 2**30:.0f} GiB are "
            "free: name another folder with --work, or smaller sizes."
        )
    command = (sys.executable, "-m", "benchmarks.events", folder, "--history", str(deliveries))
    return [Path(line) for line in run(command, timeout_seconds=timeout_seconds).output.splitlines()]


def build_history(folder: Path, deliveries: int, *, memory_limit: str, timeout_seconds: float) -> History:
    """Generate, land and build; the files are deleted once they have landed."""
    shutil.rmtree(folder, ignore_errors=True)
    files = write_files(folder / "events", deliveries, timeout_seconds=timeout_seconds)
    product = Product(folder, memory_limit=memory_limit, timeout_seconds=timeout_seconds)
    load = product.load(files)
    shutil.rmtree(folder / "events")
    return History(deliveries, product, load, product.build(full_refresh=True))
