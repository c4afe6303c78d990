"""Error reports of meters: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from orchestration.lib.stripe_meter_reports import identifier_of
from orchestration.lib.stripe_reconcile import record_readback
from tests.unit.stripe_metering import Metering
from tests.unit.stripe_outbox import target_of

WINDOW = timedelta(seconds=30)


def add_of_unknown_customer(metering: Metering, line_id: str) -> None:
    """A line whose customer Stripe does not have, which it finds out after it took the event."""
    metering.add(line_id, 10)
    metering.warehouse.set(line_id, "stripe_customer_id = 'cus_gone'")


def wait_for_next_window(metering: Metering) -> None:
    """Stripe reports on windows of ten seconds: what a test does next comes into one, if it takes no longer."""
    metering.wait(timedelta(seconds=10 - metering.server.control.now() % 10))


def test_an_event_that_was_found_invalid_goes_again_once_a_run(metering: Metering) -> None:
    add_of_unknown_customer(metering, "l1")
    metering.add("l2", 5, customer_id="customer_2")
    metering.warehouse.set("l2", "customer_id = 'customer_2', invoice_id = 'inv_2'")
    wait_for_next_window(metering)
    events, _ = metering.sync()
    assert (events.sent, events.is_clean) == (2, True)
    # The report is of a window that is not over.
    events, _ = metering.sync()
    assert (events.sent, events.already_confirmed, events.is_clean) == (0, 2, True)

    metering.wait(WINDOW)
    events, _ = metering.sync()
    assert (events.sent, events.already_confirmed) == (1, 1)
    (problem,) = events.problems
    assert (
        "line l1: Stripe took its event l1-0 and found it invalid afterwards: meter_event_customer_not_found" in problem
    )
    assert metering.warehouse.steps("meter_event", "l1") == ["intent", "confirmed", "failed", "intent", "confirmed"]

    # Mended; the report that was read before changes nothing.
    metering.wait(WINDOW)
    metering.warehouse.set("l1", "stripe_customer_id = null")
    events, _ = metering.sync()
    assert (events.sent, events.already_confirmed, len(events.problems)) == (1, 1, 1)
    log = metering.warehouse.log()
    metering.wait(WINDOW)
    events, _ = metering.sync()
    assert (events.sent, events.already_confirmed, events.is_clean) == (0, 2, True)
    assert metering.warehouse.log() == log


def test_a_report_that_names_some_points_to_reconciliation(metering: Metering) -> None:
    for number in range(7):
        add_of_unknown_customer(metering, f"l{number}")
    wait_for_next_window(metering)
    metering.sync()
    metering.wait(WINDOW)
    problems = record_readback(metering.warehouse.opened, metering.target, metering.now)
    assert len(problems) == 6
    assert "counts 7 invalid events and names 5" in problems[-1]
    assert record_readback(metering.warehouse.opened, metering.target, metering.now) == []


def test_an_event_of_somebody_else_is_named(metering: Metering) -> None:
    metering.add("l1", 5)
    metering.sync()
    metering.target.client.v1.billing.meter_events.create(
        {"event_name": "calls", "identifier": "foreign", "payload": {"stripe_customer_id": "cus_none", "value": "1"}}
    )
    metering.wait(WINDOW)
    events, _ = metering.sync()
    assert "names foreign, which is no event of ours: meter_event_customer_not_found" in events.problems[0]


def test_reports_that_cannot_be_read_are_a_problem_and_events_go(metering: Metering) -> None:
    metering.add("l1", 5)
    metering.sync()
    metering.add("l2", 6)

    def refuse(method: str, url: str, form: str, send: Any) -> Any:
        if "/v2/core/events" in url:
            return b'{"error": {"type": "invalid_request_error", "code": "forbidden", "message": "no"}}', 403, {}
        return send()

    events, _ = metering.sync(target_of(metering.server, refuse))
    assert events.sent == 1
    assert "Stripe's error reports of meters could not be read" in events.problems[0]


def test_a_report_names_an_identifier_or_the_key_of_its_request() -> None:
    assert identifier_of("l.1-0", ["l.1-0"]) == "l.1-0"
    assert identifier_of("l.1-0.2.attempt", ["l.1-0"]) == "l.1-0"
    assert identifier_of("l.1-1", ["l.1-0"]) is None
