"""Reads the sums of Stripe's meters back: of each customer and service period that has, or should have, events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from orchestration.lib.stripe_readback import PAGE_SIZE
from orchestration.lib.stripe_tables import NOTHING_LOGGED, read_log
from orchestration.lib.stripe_target import StripeTarget
from orchestration.lib.warehouse import Warehouse

COLUMNS = (
    "event_name", "customer_id", "service_period_start_at", "service_period_end_at", "stripe_customer_id",
    "stripe_meter_id", "units",
)  # fmt: skip

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class MeterPeriod:
    """What is read: a customer's usage on a meter in a service period; times in naive UTC, start inclusive."""

    event_name: str
    customer_id: str
    start_at: datetime
    end_at: datetime
    stripe_customer_id: str | None


@dataclass(frozen=True)
class ReconciledMeter:
    """A row of `marts.fct_stripe_meter_reconciliation`; quantities in meter units, times in naive UTC."""

    event_name: str
    customer_id: str
    start_at: datetime
    end_at: datetime
    finding: str
    status: str
    rated_units: Decimal
    ledger_units: Decimal
    item_units: Decimal
    not_sent_units: Decimal
    unsettled_units: Decimal
    stripe_units: Decimal
    difference_units: Decimal

    def describe(self) -> str:
        quantities = {
            "events": self.rated_units,
            "ledger": self.ledger_units,
            "as items": self.item_units,
            "not sent": self.not_sent_units,
            "not settled": self.unsettled_units,
            "Stripe": self.stripe_units,
            "difference": self.difference_units,
        }
        return (
            f"meter {self.event_name}, {self.customer_id}, {self.start_at:%Y-%m-%d %H:%M} to "
            f"{self.end_at:%Y-%m-%d %H:%M} UTC: {self.finding}, {self.status}; "
            + ", ".join(f"{name} {_plain(units)}" for name, units in quantities.items())
        )


def read_meters(warehouse: Warehouse, target: StripeTarget, now: datetime) -> list[dict[str, Any]]:
    """Rows for `ops.stripe_meter_readback`, but for the columns that say which readback it is.

    Raises:
        stripe.StripeError: Stripe cannot be read.
    """
    periods = _periods_to_read(warehouse, target.log_account, now)
    if not periods:
        return []
    services = target.client.v1.billing.meters
    meters: dict[str, list[str]] = defaultdict(list)
    for meter in services.list({"limit": PAGE_SIZE}).auto_paging_iter():
        meters[meter.event_name].append(meter.id)
    rows: list[dict[str, Any]] = []
    for period in periods:
        head = (period.event_name, period.customer_id, period.start_at, period.end_at, period.stripe_customer_id)
        found: list[tuple[str | None, Decimal]] = []
        if period.stripe_customer_id is not None:
            for meter_id in meters[period.event_name]:
                summaries = services.event_summaries.list(
                    meter_id,
                    {
                        "customer": period.stripe_customer_id,
                        "start_time": minute_at_or_after(period.start_at),
                        "end_time": minute_at_or_after(period.end_at),
                        "limit": PAGE_SIZE,
                    },
                )
                units = [_exact(summary.aggregated_value) for summary in summaries.auto_paging_iter()]
                found.append((meter_id, sum(units, Decimal(0))))
        # Also where there is nothing to ask Stripe for, so that what should be there is missing.
        rows += [dict(zip(COLUMNS, (*head, *meter), strict=True)) for meter in found or [(None, Decimal(0))]]
    return rows


def read_meter_reconciliation(warehouse: Warehouse, stripe_account: str) -> list[ReconciledMeter]:
    """What the warehouse says of the last time that the account's meters were read."""
    rows = warehouse.execute(
        """
        select
            event_name, customer_id, service_period_start_at, service_period_end_at, finding, reconciliation_status,
            rated_units, ledger_units, item_units, not_sent_units, unsettled_units, stripe_units, difference_units
        from marts.fct_stripe_meter_reconciliation
        where stripe_account = ?
        order by event_name, customer_id, service_period_start_at, service_period_end_at
        """,
        [stripe_account],
    ).rows
    return [ReconciledMeter(*row) for row in rows]


def minute_at_or_after(at: datetime) -> int:
    """Seconds since 1970 of the whole minute at a naive UTC time, or of the next one: Stripe sums whole minutes.

    An event lies on a whole minute, so it is between the two of a period exactly when it is in the period.
    """
    whole = at.replace(second=0, microsecond=0)
    return int((whole if whole == at else whole + MINUTE).replace(tzinfo=UTC).timestamp())


def _periods_to_read(warehouse: Warehouse, stripe_account: str, now: datetime) -> Sequence[MeterPeriod]:
    """Those of the outbox, and of what went as an event before its subscription left the route."""
    rows = warehouse.execute(
        """
        with

        wanted as (

            select event_name, customer_id, service_period_start_at, service_period_end_at
            from marts.stripe_meter_events
            where event_name is not null

            union

            select log.currency, log.customer_id, lines.service_period_start_at, lines.service_period_end_at
            from ops.stripe_sync_log as log
            inner join ledger.billing_ledger as lines
                on log.entity_key = lines.line_id
            where
                log.entity = 'meter_event'
                and log.stripe_account = ?

        ),

        customers as (

            select customer_id, max(stripe_customer_id) as stripe_customer_id
            from marts.stripe_invoice_items
            group by customer_id

        ),

        -- Stripe takes events of the past 35 days: what was read later than that after its end stays as it is.
        finished as (

            select distinct event_name, customer_id, service_period_start_at, service_period_end_at
            from ops.stripe_meter_readback
            where
                stripe_account = ?
                and read_at >= service_period_end_at + interval '36 days'

        )

        select
            wanted.event_name,
            wanted.customer_id,
            wanted.service_period_start_at,
            wanted.service_period_end_at,
            customers.stripe_customer_id
        from wanted
        left join customers
            on wanted.customer_id = customers.customer_id
        left join finished
            on
                wanted.event_name = finished.event_name
                and wanted.customer_id = finished.customer_id
                and wanted.service_period_start_at = finished.service_period_start_at
                and wanted.service_period_end_at = finished.service_period_end_at
        where
            wanted.service_period_start_at <= ?
            and finished.event_name is null
        order by 1, 2, 3, 4
        """,
        [stripe_account, stripe_account, now],
    ).rows
    log = read_log(warehouse, stripe_account)
    return [
        MeterPeriod(
            event_name,
            customer_id,
            start_at,
            end_at,
            mapped or log.get(("customer", customer_id), NOTHING_LOGGED).confirmed_id,
        )
        for event_name, customer_id, start_at, end_at, mapped in rows
    ]


def _exact(value: float) -> Decimal:
    """As Stripe wrote it; twelve decimals are kept."""
    return round(Decimal(str(value)), 12)


def _plain(units: Decimal) -> str:
    return f"{units.normalize():f}"
