"""A sample of the fault campaign, and syncs of real processes that are killed in the middle of a call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from orchestration.lib.project import PROJECT_DIR, Settings
from orchestration.lib.stripe_sync import sync_invoice_items
from orchestration.lib.stripe_target import StripeTarget, stripe_client
from orchestration.lib.warehouse import append_rows, connect
from orchestration.local_stripe import Fault, LocalStripeServer
from orchestration.local_stripe.control import FaultKind
from tests.chaos.campaign import CALL_FAULTS, LOG_FAULTS, create_outbox, run_campaign

KEY = "sk_test_chaos"
SYNC = f"""
import sys
from pathlib import Path
from orchestration.lib.project import Settings
from orchestration.lib.stripe_sync import sync_invoice_items
from orchestration.lib.stripe_target import StripeTarget, stripe_client
from orchestration.lib.warehouse import WarehouseError, connect

client = stripe_client("{KEY}", sys.argv[2])
target = StripeTarget(client, client.v1.accounts.retrieve_current().id, "local", "local Stripe server")
try:
    with connect(Settings(Path(sys.argv[1]), "ci")) as warehouse:
        report = sync_invoice_items(warehouse, target, billing_period=None, progress=print)
except WarehouseError as error:
    sys.exit(str(error))
"""


def test_no_line_is_lost_or_doubled_in_a_sample_of_the_campaign() -> None:
    tally = run_campaign(runs=60, seed=5)
    assert tally.is_clean, tally.describe()
    assert tally.lines > 200
    assert tally.corrections > 0
    assert 0 < tally.streamed < tally.events
    assert set(tally.faults) == (CALL_FAULTS.keys() | LOG_FAULTS.keys()) - {"none"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A warehouse with three lines to send."""
    settings = Settings(tmp_path / "metering.duckdb", "ci")
    with connect(settings) as warehouse:
        create_outbox(warehouse)
        append_rows(
            warehouse,
            "marts.stripe_invoice_items",
            [
                {
                    "line_id": f"l{number}",
                    "invoice_id": "inv_1",
                    "run_id": "2026-10.1",
                    "customer_id": "customer_1",
                    "billing_period": "2026-10",
                    "service_period_start_at": datetime(2026, 10, 1),
                    "service_period_end_at": datetime(2026, 11, 1),
                    "currency": "USD",
                    "amount_minor": 100 + number,
                }
                for number in range(3)
            ],
        )
    return settings


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalStripeServer]:
    with LocalStripeServer(tmp_path / "stripe.sqlite") as running:
        yield running


def start_sync(settings: Settings, server: LocalStripeServer) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SYNC, str(settings.database), server.url],
        cwd=PROJECT_DIR,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("kind", "path", "skip"),
    [
        ("hang_after", "/v1/customers", 0),
        ("hang_after", "/v1/invoices", 0),
        ("hang_before", "/v1/invoices/", 0),
        ("hang_after", "/v1/invoices/", 0),
    ],
)
def test_a_process_killed_between_intent_and_outcome_is_made_good_a_day_later(
    settings: Settings, server: LocalStripeServer, kind: FaultKind, path: str, skip: int
) -> None:
    server.control.add(Fault(kind, "POST", path, skip=skip, seconds=60))
    process = start_sync(settings, server)
    deadline = time.monotonic() + 60
    while not server.control.injected:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if path == "/v1/customers":
        second = start_sync(settings, server)
        assert "another process holds it" in second.communicate(timeout=60)[1]
        assert second.returncode == 1
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    server.control.advance(25 * 3600)
    client = stripe_client(KEY, server.url)
    target = StripeTarget(client, client.v1.accounts.retrieve_current().id, "local", "local Stripe server")
    with connect(settings) as warehouse:
        report = sync_invoice_items(warehouse, target, billing_period=None, progress=lambda _: None)
    assert report.is_clean
    (invoice,) = client.v1.invoices.list().data
    assert Counter(line.metadata["metering_line_id"] for line in invoice.lines.data) == {"l0": 1, "l1": 1, "l2": 1}
    assert invoice.total == 303
    assert len(client.v1.customers.list().data) == 1
