"""`python -m orchestration.local_stripe --state PATH --port N`: the local Stripe server in the foreground."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .errors import LocalStripeError
from .server import serve_forever


def main() -> int:
    """Run until interrupted; 0 after that, 1 when the server cannot start."""
    parser = argparse.ArgumentParser(prog="python -m orchestration.local_stripe", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="SQLite file with the account's state")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: any free one)")
    arguments = parser.parse_args()
    try:
        serve_forever(arguments.state, arguments.port)
    except LocalStripeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
