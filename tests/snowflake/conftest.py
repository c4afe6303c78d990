"""One stand-in for Snowflake a process, and a database of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.integration.conftest import _dbt, project_copy
from tests.snowflake.standin import Standin

__all__ = ["_dbt", "project_copy"]

_numbers = count(1)


@pytest.fixture(scope="session")
def standin() -> Iterator[Standin]:
    """The server, in memory."""
    with Standin() as server:
        yield server


@pytest.fixture
def account_database(standin: Standin) -> str:
    """The name of a database that nothing has used yet; the first connection creates it."""
    return f"METERING_{next(_numbers)}"
