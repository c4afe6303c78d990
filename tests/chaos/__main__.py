"""`python -m tests.chaos --runs N --seed S`: the fault campaign. Exits with 1 when a line is lost or doubled.

`--lines N` measures the sync of N lines without faults instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.campaign import run_campaign
from tests.chaos.throughput import measure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="outboxes to bring into Stripe (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (default: 1)")
    parser.add_argument("--lines", type=int, help="measure the sync of so many lines instead, without faults")
    arguments = parser.parse_args()
    if arguments.lines is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(arguments.lines, Path(folder)))
        return 0
    started = time.monotonic()
    tally = run_campaign(arguments.runs, arguments.seed)
    print(tally.describe())
    print(f"{time.monotonic() - started:.0f} s, seed {arguments.seed}")
    return 0 if tally.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
