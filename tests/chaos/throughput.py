"""How fast lines reach a local Stripe server of another process, and how much of the time the sync waits for it."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import requests
import stripe

from orchestration.lib.project import PROJECT_DIR, Settings
from orchestration.lib.stripe_sync import sync_invoice_items
from orchestration.lib.stripe_target import StripeTarget
from orchestration.lib.warehouse import connect
from tests.chaos.campaign import create_outbox

LINES_PER_INVOICE = 100


class TimedHttp(stripe.RequestsClient):
    """The SDK's own transport, counting calls and the seconds spent in them."""

    def __init__(self) -> None:
        session = requests.Session()
        session.trust_env = False
        super().__init__(session=session)
        self.calls = 0
        self.seconds = 0.0

    def request(self, method: str, url: str, headers: Any, post_data: Any = None) -> Any:  # type: ignore[override]
        started = time.perf_counter()
        try:
            return super().request(method, url, headers, post_data)
        finally:
            self.calls += 1
            self.seconds += time.perf_counter() - started


def measure(lines: int, folder: Path) -> str:
    """Sync lines, 100 an invoice, into an empty account, and say how that went."""
    server = subprocess.Popen(
        [sys.executable, "-m", "orchestration.local_stripe", "--state", str(folder / "stripe.sqlite")],
        cwd=PROJECT_DIR,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        http = TimedHttp()
        client = stripe.StripeClient("sk_test_local", base_addresses={"api": url}, http_client=http)
        target = StripeTarget(client, client.v1.accounts.retrieve_current().id, "local", "local Stripe server")
        with connect(Settings(folder / "metering.duckdb", "ci")) as warehouse:
            create_outbox(warehouse)
            warehouse.execute(
                """
                insert into marts.stripe_invoice_items by name
                select
                    'line_' || number as line_id, 'invoice_' || number // $size as invoice_id, '2026-10.1' as run_id,
                    'customer_' || number // $size as customer_id, '2026-10' as billing_period, 'USD' as currency,
                    $start as service_period_start_at, $end as service_period_end_at, number as amount_minor
                from range($lines) as numbers (number)
                """,
                {
                    "size": LINES_PER_INVOICE,
                    "lines": lines,
                    "start": datetime(2026, 10, 1),
                    "end": datetime(2026, 11, 1),
                },
            )
            http.calls, http.seconds = 0, 0.0
            started = time.perf_counter()
            report = sync_invoice_items(warehouse, target, billing_period=None, progress=lambda _: None)
            seconds = time.perf_counter() - started
    finally:
        server.terminate()
        server.wait()
    if report.created != lines or not report.is_clean:
        raise SystemExit(f"{report.created} of {lines} lines created: {report.problems}")
    return (
        f"{lines:,} lines in {seconds:.1f} s, {lines / seconds:,.0f} a second: {http.calls:,} calls, "
        f"{http.calls / seconds:,.0f} a second; {1 - http.seconds / seconds:.0%} of the time not waiting for the server"
    )
