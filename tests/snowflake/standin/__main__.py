"""The stand-in as a program.

python -m tests.snowflake.standin [FOLDER]              serve until standard input ends; the first line of output is the port
python -m tests.snowflake.standin run COMMAND [ARG]...  run a command with an empty stand-in behind the dbt target standin
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import subprocess
import sys
import threading
import warnings


def serve(folder: str | None) -> None:
    warnings.simplefilter("ignore")
    import fakesnow.server
    import uvicorn
    from fakesnow.instance import FakeSnow

    from tests.snowflake.standin import shims, stages

    shims.install()
    stages.install()
    # sqlglot warns of what it passes on as it is; fakesnow notes each session and each error that it returns to the client.
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    logging.getLogger("fakesnow.server").setLevel(logging.ERROR)
    if folder is not None:
        fakesnow.server.shared_fs = FakeSnow(db_path=folder)
    # Each statement becomes a tree whose nodes know their parents, which the collector walks again and again.
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(fakesnow.server.app, log_level="critical"))

    def stop_at_end_of_input() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    listener.listen()
    print(f"port {listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])


def run(command: list[str]) -> int:
    from tests.snowflake.standin import Standin

    with Standin() as standin:
        environment = {**os.environ, **standin.environment("METERING"), "METERING_TARGET": "standin"}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        sys.exit(run(sys.argv[2:]))
    serve(sys.argv[1] if len(sys.argv) > 1 else None)
