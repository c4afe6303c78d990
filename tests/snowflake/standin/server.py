"""Start and stop the stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

PROJECT_DIR = Path(__file__).resolve().parents[3]


class Standin:
    """The server in a process of its own, on a loopback port that the system chooses.

    In memory by default: each database lives until the server stops. With a folder, each database is a file in it, and is found again
    by the next server on the same folder. A database is created by the first connection that names it, so a test that wants an empty
    account names a database of its own.
    """

    def __init__(self, folder: Path | None = None) -> None:
        command = [sys.executable, "-m", "tests.snowflake.standin"]
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            command.append(str(folder))
        self._process = subprocess.Popen(
            command, cwd=PROJECT_DIR, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("port "):
            self.stop()
            raise RuntimeError("the stand-in did not start; its output stands above")
        self.port = int(line.removeprefix("port "))

    def environment(self, database: str) -> dict[str, str]:
        """What points the profile's target `standin` at a database of this server."""
        return {"METERING_STANDIN_PORT": str(self.port), "SNOWFLAKE_DATABASE": database}

    def connection_parameters(self, database: str) -> dict[str, object]:
        """Arguments of snowflake.connector.connect for a database of this server."""
        return {
            "account": "standin",
            "user": "metering",
            "password": "metering",
            "host": "127.0.0.1",
            "port": self.port,
            "protocol": "http",
            "database": database,
            "schema": "MAIN",
            "login_timeout": 10,
            "network_timeout": 60,
        }

    def stop(self) -> None:
        """End the server, and with it every database in memory."""
        # The server ends when its input does, so also when this process dies without saying so.
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Standin:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
