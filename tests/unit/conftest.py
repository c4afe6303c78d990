"""Fixtures of the tests of the sync: a real DuckDB file and the local Stripe server over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.lib.stripe_target import StripeTarget
from orchestration.local_stripe import LocalStripeServer
from tests.unit.stripe_metering import Metering
from tests.unit.stripe_outbox import Warehouse, target_of


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    opened = Warehouse(tmp_path / "warehouse.duckdb")
    yield opened
    opened.connection.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "stripe.sqlite"


@pytest.fixture
def server(state: Path) -> Iterator[LocalStripeServer]:
    with LocalStripeServer(state) as running:
        yield running


@pytest.fixture
def target(server: LocalStripeServer) -> StripeTarget:
    return target_of(server)


@pytest.fixture
def metering(tmp_path: Path) -> Iterator[Metering]:
    with LocalStripeServer(tmp_path / "stripe.sqlite") as server:
        opened = Metering(tmp_path, server)
        yield opened
        opened.warehouse.connection.close()
