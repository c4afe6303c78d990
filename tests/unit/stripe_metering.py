"""Outboxes of items and meter events, Stripe, and a clock that moves with Stripe's: for the tests of meters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestration.lib.project import PROJECT_DIR
from orchestration.lib.stripe_meters import MeterReport, sync_outboxes
from orchestration.lib.stripe_readback import read_back_invoices
from orchestration.lib.stripe_settings import InvoiceSettings
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_target import StripeTarget
from orchestration.lib.warehouse import raw_and_ops_table_statements
from orchestration.local_stripe import Fault, LocalStripeServer
from orchestration.local_stripe.control import FaultKind
from tests.unit.stripe_outbox import Warehouse, target_of

MONTHS = timedelta(days=40)
DAY = timedelta(hours=25)


class Metering:
    """An outbox of each kind, Stripe, and a clock that moves with Stripe's."""

    def __init__(self, folder: Path, server: LocalStripeServer) -> None:
        self.warehouse = Warehouse(folder / "warehouse.duckdb")
        for statement in raw_and_ops_table_statements(PROJECT_DIR):
            self.warehouse.connection.execute(statement)
        self.warehouse.connection.execute(
            """
            create table marts.stripe_meter_events (
                line_id varchar, rated_line_id varchar, customer_id varchar, billing_period varchar, event_name varchar,
                display_name varchar, value_units bigint, event_at timestamp, hold_reason varchar,
                service_period_start_at timestamp, service_period_end_at timestamp
            )
            """
        )
        self.server = server
        # As long as Stripe lets an account have it.
        self.settings = InvoiceSettings(meter_grace=timedelta(hours=72))
        self.events_path = "/v1/billing/meter_events"
        self.offset = timedelta(0)
        self.told: list[str] = []
        # Without the SDK's retries, so that one fault is enough.
        self.target = target_of(server, lambda method, url, form, send: send())

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.server.control.now(), UTC).replace(tzinfo=None) + self.offset

    def wait(self, time: timedelta) -> None:
        self.server.control.advance(time.total_seconds())

    def add(self, line_id: str, value: int | None, age: timedelta = timedelta(hours=2), **columns: Any) -> None:
        """A line of both outboxes, whose event lies so far back."""
        self.warehouse.add(line_id, hold_reason="meter_event", amount_minor=7 if (value or 0) > 0 else -7)
        event_at = (self.now() - age).replace(second=0, microsecond=0)
        row = {
            "line_id": line_id,
            "rated_line_id": line_id,
            "customer_id": "customer_1",
            "billing_period": "2026-10",
            "event_name": "calls",
            "display_name": "Calls",
            "value_units": value,
            "event_at": event_at,
            "service_period_start_at": event_at - timedelta(days=1),
            "service_period_end_at": event_at + timedelta(minutes=1),
        } | columns
        self.warehouse.connection.execute(
            f"insert into marts.stripe_meter_events ({', '.join(row)}) values ({', '.join('?' for _ in row)})",
            list(row.values()),
        )

    def correct(self, line_id: str, value: int | None, corrected_id: str, **columns: Any) -> None:
        """An adjustment of a line: of its rated line, in its minute and service period."""
        shared = ("rated_line_id", "event_at", "service_period_start_at", "service_period_end_at")
        (row,) = self.warehouse.connection.execute(
            f"select {', '.join(shared)} from marts.stripe_meter_events where line_id = ?", [corrected_id]
        ).fetchall()
        self.add(line_id, value, **dict(zip(shared, row, strict=True)), **columns)

    def sync(self, target: StripeTarget | None = None) -> tuple[MeterReport, SyncReport]:
        return sync_outboxes(
            self.warehouse.opened,
            target or self.target,
            billing_period=None,
            progress=self.told.append,
            settings=self.settings,
            sleep=lambda _: None,
            now=self.now,
        )

    def total(self, line_id: str) -> float:
        """What the meter has of the customer in the minute of the line."""
        (found,) = self.warehouse.connection.execute(
            "select event_at from marts.stripe_meter_events where line_id = ?", [line_id]
        ).fetchall()
        minute = int(found[0].replace(tzinfo=UTC).timestamp())
        services = self.target.client.v1
        (customer,) = services.customers.list().data
        meter = next(meter for meter in services.billing.meters.list().data if meter.event_name == "calls")
        summaries = services.billing.meters.event_summaries.list(
            meter.id, {"customer": customer.id, "start_time": minute, "end_time": minute + 60}
        )
        return sum(summary.aggregated_value for summary in summaries.data)

    def items(self) -> list[str]:
        invoices = read_back_invoices(self.target)
        return sorted(line_id for invoice in invoices for line_id in invoice.line_ids)

    def fail(self, kind: FaultKind) -> None:
        """What happens to the next event."""
        self.server.control.add(Fault(kind, "POST", self.events_path))
