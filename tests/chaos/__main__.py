"""`python -m tests.chaos --runs N --seed S`: the fault campaign. Exits with 1 when a line is lost or doubled."""

from __future__ import annotations

import argparse
import sys
import time

from tests.chaos.campaign import run_campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="outboxes to bring into Stripe (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (default: 1)")
    arguments = parser.parse_args()
    started = time.monotonic()
    tally = run_campaign(arguments.runs, arguments.seed)
    print(tally.describe())
    print(f"{time.monotonic() - started:.0f} s, seed {arguments.seed}")
    return 0 if tally.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
