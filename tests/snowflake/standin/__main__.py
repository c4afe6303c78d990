"""python -m tests.snowflake.standin [FOLDER]: serve until standard input ends; the first line of output is the port."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import warnings


def main() -> None:
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
    if len(sys.argv) > 1:
        fakesnow.server.shared_fs = FakeSnow(db_path=sys.argv[1])
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


if __name__ == "__main__":
    main()
