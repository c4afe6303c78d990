"""The machine and the versions that figures belong to, without names of hosts or paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path


def machine_facts() -> dict[str, str]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": platform.system(),
        "Python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("duckdb", "dbt-core", "dbt-duckdb")},
    }


def load_average() -> float:
    """Of the last minute: above the number of cores, something else was running too."""
    return os.getloadavg()[0]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
