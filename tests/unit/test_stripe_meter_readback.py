"""The reading back of meters: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from orchestration.lib.stripe_errors import StripeSyncError
from orchestration.lib.stripe_meter_readback import ReconciledMeter, minute_at_or_after
from orchestration.lib.stripe_reconcile import ReconciliationReport, record_readback
from tests.unit.stripe_metering import Metering
from tests.unit.stripe_outbox import target_of


def read_back(metering: Metering) -> list[tuple[Any, ...]]:
    """Customer, whether a meter was there, and units of each row of a new readback."""
    record_readback(metering.warehouse.opened, metering.target, metering.now)
    return metering.warehouse.connection.execute(
        """
        select customer_id, stripe_customer_id is not null, stripe_meter_id is not null, units
        from ops.stripe_meter_readback
        where read_at = (select max(read_at) from ops.stripe_readback)
        order by all
        """
    ).fetchall()


def test_the_sum_of_a_period_is_kept_until_no_event_can_arrive(metering: Metering) -> None:
    metering.add("l1", 10)
    metering.add("l2", 5, age=timedelta(hours=30), service_period_end_at=metering.now() + timedelta(days=9))
    metering.add("l3", 7, customer_id="customer_2")
    metering.warehouse.set("l3", "customer_id = 'customer_2', invoice_id = 'inv_2'")
    metering.fail("drop_before")
    assert read_back(metering) == [
        ("customer_1", False, False, 0),
        ("customer_1", False, False, 0),
        ("customer_2", False, False, 0),
    ]
    metering.sync()
    metering.sync()
    # The second period holds the first one's event too.
    assert read_back(metering) == [
        ("customer_1", True, True, 10),
        ("customer_1", True, True, 15),
        ("customer_2", True, True, 7),
    ]
    metering.wait(timedelta(days=40))
    assert len(read_back(metering)) == 3
    metering.wait(timedelta(days=1))
    assert read_back(metering) == [("customer_1", True, True, 15)]
    metering.wait(timedelta(days=9))
    assert read_back(metering) == [("customer_1", True, True, 15)]
    metering.wait(timedelta(days=1))
    assert read_back(metering) == []


def test_an_event_that_left_the_route_is_read_all_the_same(metering: Metering) -> None:
    metering.add("l1", 10)
    metering.sync()
    connection = metering.warehouse.connection
    # The columns that matter of the ledger's line; the others say that they are not null.
    connection.execute("drop table ledger.billing_ledger")
    connection.execute(
        """
        create table ledger.billing_ledger as
        select line_id, service_period_start_at, service_period_end_at from marts.stripe_meter_events
        """
    )
    connection.execute("delete from marts.stripe_meter_events")
    assert read_back(metering) == [("customer_1", True, True, 10)]


def test_nothing_is_kept_of_a_readback_that_failed(metering: Metering) -> None:
    metering.add("l1", 10)
    metering.sync()

    def refuse(method: str, url: str, form: str, send: Any) -> Any:
        if "event_summaries" in url:
            return b'{"error": {"type": "invalid_request_error", "message": "no"}}', 400, {}
        return send()

    with pytest.raises(StripeSyncError, match="reading back failed, nothing was kept: HTTP 400"):
        record_readback(metering.warehouse.opened, target_of(metering.server, refuse), metering.now)
    for table in ("ops.stripe_readback", "ops.stripe_meter_readback"):
        assert metering.warehouse.connection.execute(f"select * from {table}").fetchall() == []


def test_stripe_takes_whole_minutes() -> None:
    at = datetime(2026, 10, 1)
    seconds = int(at.replace(tzinfo=UTC).timestamp())
    assert minute_at_or_after(at) == seconds
    assert minute_at_or_after(at + timedelta(microseconds=1)) == seconds + 60
    assert minute_at_or_after(at + timedelta(seconds=60)) == seconds + 60


def test_a_report_names_what_differs() -> None:
    nothing = Decimal("0E-12")
    meter = ReconciledMeter(
        event_name="calls",
        customer_id="cus_1",
        start_at=datetime(2026, 10, 1),
        end_at=datetime(2026, 11, 1),
        finding="missing",
        status="red",
        rated_units=Decimal(100),
        ledger_units=Decimal("99.5"),
        item_units=Decimal(-1),
        not_sent_units=nothing,
        unsettled_units=nothing,
        stripe_units=nothing,
        difference_units=Decimal(-100),
    )
    report = ReconciliationReport("acct", (), (meter,))
    assert report.red_meters == (meter,)
    assert report.describe().splitlines()[-2:] == [
        "meter calls, cus_1, 2026-10-01 00:00 to 2026-11-01 00:00 UTC: missing, red; events 100, ledger 99.5, "
        "as items -1, not sent 0, not settled 0, Stripe 0, difference -100",
        "account acct: 0 of 1 customers' periods on meters agree with Stripe, 0 not settled, 1 red",
    ]
