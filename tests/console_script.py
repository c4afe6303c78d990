"""Run a console script of this environment with rare garbage collections: sqlfluff takes a third less time then.

    python -m tests.console_script sqlfluff lint models

Processes that the script starts by multiprocessing import this module first, and so do the same.
"""

from __future__ import annotations

import gc
import sys
from importlib.metadata import entry_points

gc.set_threshold(100_000, 20, 50)

if __name__ == "__main__":
    (script,) = entry_points(group="console_scripts", name=sys.argv[1])
    sys.argv = sys.argv[1:]
    sys.exit(script.load()())
