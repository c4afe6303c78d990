"""The sync of meter events: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from orchestration.lib.stripe_meter_decisions import (
    Decision,
    MeterLine,
    Try,
    Way,
    decide,
    decide_corrections,
    describe_events,
    find_arrived,
)
from orchestration.lib.stripe_meters import MeterReport, plan_events
from orchestration.local_stripe.control import FaultKind
from tests.unit.stripe_metering import DAY, MONTHS, Metering
from tests.unit.stripe_outbox import target_of


def test_a_quantity_goes_to_a_meter_once_and_is_no_item(metering: Metering) -> None:
    metering.add("l1", 1250)
    metering.warehouse.add("fee", amount_minor=100)
    events, items = metering.sync()
    assert events == MeterReport(sent=1, meters_created=1)
    assert items.created == 1
    assert items.is_clean
    assert (metering.total("l1"), metering.items()) == (1250, ["fee"])
    assert metering.warehouse.steps("meter_event", "l1") == ["intent", "confirmed"]
    (meter,) = metering.target.client.v1.billing.meters.list().data
    assert (meter.event_name, meter.display_name, meter.default_aggregation.formula) == ("calls", "Calls", "sum")

    metering.wait(MONTHS)
    events, items = metering.sync()
    assert events == MeterReport(already_confirmed=1)
    assert (items.created, metering.total("l1"), metering.items()) == (0, 1250, ["fee"])


def test_a_line_that_is_closed_between_the_reads_of_the_outboxes_goes_with_the_next_sync(metering: Metering) -> None:
    metering.add("l1", 10)
    metering.add("l2", 5)
    metering.add("l3", 0, hold_reason="zero_quantity")
    items = "marts.stripe_invoice_items"
    metering.warehouse.connection.execute(f"create table later as from {items} where line_id <> 'l1'")
    metering.warehouse.connection.execute(f"delete from {items} where line_id <> 'l1'")
    events, _ = metering.sync()
    assert events == MeterReport(sent=1, meters_created=1)
    metering.warehouse.connection.execute(f"insert into {items} from later")
    events, report = metering.sync()
    assert (events.sent, events.already_confirmed, events.is_clean) == (1, 1, True)
    assert (metering.total("l1"), report.created, metering.items()) == (15, 1, ["l3"])


@pytest.mark.parametrize(
    ("value", "age"),
    [(-5, timedelta(hours=2)), (5, timedelta(hours=73)), (-5, timedelta(days=4)), (5, timedelta(days=36))],
)
def test_what_meters_cannot_take_is_an_item_and_stays_one(metering: Metering, value: int, age: timedelta) -> None:
    metering.add("l1", value, age)
    events, items = metering.sync()
    assert (events.as_items, events.is_clean, items.created, metering.items()) == (1, True, 1, ["l1"])
    # Had the route been chosen again, it would be an event by now.
    metering.warehouse.connection.execute(
        "update marts.stripe_meter_events set value_units = 5, event_at = $now, service_period_end_at = $now",
        {"now": metering.now()},
    )
    events, items = metering.sync()
    assert (events.as_items, events.sent, items.already_confirmed) == (1, 0, 1)


@pytest.mark.parametrize(("kind", "arrives"), [("drop_before", False), ("drop_after", True), ("error_after", True)])
@pytest.mark.parametrize("pause", [timedelta(0), DAY, MONTHS])
def test_an_event_of_unknown_outcome_counts_once(
    metering: Metering, kind: FaultKind, arrives: bool, pause: timedelta
) -> None:
    """Again under its identifier; after a day by the sum of its minute; after 40 days as an item, if it had not arrived."""
    metering.add("l1", 10)
    metering.add("l2", 10)
    metering.fail(kind)
    events, _ = metering.sync()
    assert events.unknown == 1
    assert metering.items() == []
    metering.wait(pause)
    metering.sync()
    metering.sync()
    as_items = {"l1": not arrives, "l2": True} if pause == MONTHS else {}
    assert metering.items() == [line_id for line_id, is_item in as_items.items() if is_item]
    expected = 20 - 10 * len(metering.items())
    assert metering.total("l1") == expected
    events, items = metering.sync()
    assert events.is_clean
    assert items.is_clean
    assert (events.already_confirmed, events.as_items) == (expected / 10, len(metering.items()))


def test_a_minute_that_shows_something_else_stops_its_line_alone(metering: Metering) -> None:
    metering.add("l1", 10)
    metering.fail("drop_after")
    metering.sync()
    (customer,) = metering.target.client.v1.customers.list().data
    (row,) = metering.warehouse.connection.execute("select event_at from marts.stripe_meter_events").fetchall()
    metering.target.client.v1.billing.meter_events.create(
        {
            "event_name": "calls",
            "timestamp": int(row[0].replace(tzinfo=UTC).timestamp()),
            "payload": {"stripe_customer_id": customer.id, "value": "3"},
        }
    )
    metering.wait(DAY)
    metering.add("l2", 5)
    events, _ = metering.sync()
    assert events.sent == 1
    (problem,) = events.problems
    assert "lines l1: the meter calls" in problem
    assert "has 13 of customer" in problem
    assert "neither 0 nor that with any of [10]" in problem
    assert (metering.total("l1"), metering.total("l2"), metering.items()) == (13, 5, [])


def test_a_correction_goes_to_the_meter_after_what_it_corrects(metering: Metering) -> None:
    """By line id it would come first. What the meter has not enough for, or in another minute, is an item."""
    metering.add("c", 10)
    metering.correct("a", -4, "c")
    metering.correct("b", -7, "c")
    metering.correct("d", -1, "c")
    metering.warehouse.connection.execute(
        "update marts.stripe_meter_events set event_at = event_at - interval 1 minute where line_id = 'd'"
    )
    events, items = metering.sync()
    assert (events.sent, events.as_items, events.is_clean, items.created) == (2, 2, True, 2)
    assert (metering.total("c"), metering.items()) == (6, ["b", "d"])
    # A later correction finds what is left.
    metering.correct("e", -6, "c")
    events, _ = metering.sync()
    assert (events.sent, events.already_confirmed, metering.total("c")) == (1, 2, 0)


def test_a_correction_waits_for_lines_without_a_known_outcome(metering: Metering) -> None:
    metering.add("l1", 10)
    metering.fail("drop_after")
    metering.sync()
    metering.wait(timedelta(hours=24))
    metering.correct("l2", -4, "l1")
    metering.add("l3", 5, event_name="bytes")

    def refuse(method: str, url: str, form: str, send: Any) -> Any:
        if "event_summaries" in url:
            return b'{"error": {"type": "invalid_request_error", "message": "no"}}', 400, {}
        return send()

    events, items = metering.sync(target_of(metering.server, refuse))
    assert (events.sent, events.failed, events.waiting, items.created) == (1, 1, 1, 0)
    assert "line l2: its -4 on calls wait, because other lines" in events.problems[-1]
    events, items = metering.sync()
    assert (events.confirmed_by_lookup, events.sent, events.is_clean, items.created) == (1, 1, True, 0)
    assert metering.total("l1") == 6


def test_a_correction_of_unknown_outcome_is_looked_up(metering: Metering) -> None:
    metering.add("l1", 10)
    metering.sync()
    metering.correct("l2", -4, "l1")
    metering.fail("drop_after")
    events, _ = metering.sync()
    assert events.unknown == 1
    metering.wait(DAY)
    events, _ = metering.sync()
    assert (events.confirmed_by_lookup, events.sent, metering.total("l1")) == (1, 0, 6)


def test_what_was_found_invalid_after_its_correction_is_named(metering: Metering) -> None:
    metering.add("l1", 10)
    metering.correct("l2", -4, "l1")
    metering.sync()
    metering.warehouse.connection.execute(
        """
        insert into ops.stripe_sync_log (logged_at, stripe_account, entity, entity_key, step, idempotency_key)
        values (?, ?, 'meter_event', 'l1', 'failed', 'l1-0')
        """,
        [metering.now(), metering.target.log_account],
    )
    metering.warehouse.connection.execute("update marts.stripe_meter_events set hold_reason = 'no_meter'")
    events, _ = metering.sync()
    assert "meter calls, customer_1" in events.problems[0]
    assert "Stripe has -4, and bills nothing for less than nothing" in events.problems[0]


def test_corrections_are_decided_in_their_order_by_what_is_left() -> None:
    """What fits beside the others goes; what would fit without one that is on its way waits; what never fits is an item."""
    end = datetime(2026, 11, 1)
    at = end - timedelta(minutes=1)

    def decision(line_id: str, value: int, way: Way) -> Decision:
        line = MeterLine(line_id, line_id, "c", "2026-10", "calls", None, value, at, None, datetime(2026, 10, 1), end)
        return Decision(line, way, f"{line_id}-0")

    tries = {"a": [Try("a", "a-0", "calls", 10, "c", 1, 0, False, end, end, end)]}
    decisions = [decision("a", 10, "done")]
    decisions += [decision(f"c{-value}", value, "correction") for value in (-6, -5, -4, -11)]
    ways = [decided.way for decided in decide_corrections(decisions, tries)]
    assert ways == ["done", "send", "correction", "send", "item"]
    unsettled: tuple[Way, ...] = ("send", "look", "wait")
    for way in unsettled:
        undecided = [*decisions, decision("b", 100, way)]
        assert decide_corrections(undecided, tries) == undecided


def test_the_time_until_finalisation_is_kept() -> None:
    """To the minute, a quarter of an hour before; also for what has no known outcome."""
    end = datetime(2026, 11, 1)
    line = MeterLine("l", "l", "c", "2026-10", "calls", None, 5, end - DAY, None, datetime(2026, 10, 1), end)
    unknown = Try("l", "l-0", "calls", 5, "c", 1, 0, False, end + timedelta(hours=70), end + timedelta(hours=70), None)
    last = end + timedelta(hours=71, minutes=45)
    grace = timedelta(hours=72)
    after = last + timedelta(microseconds=1)
    assert [decide(line, [], False, at, grace).way for at in (last, after)] == ["send", "item"]
    assert [decide(line, [unknown], False, at, grace).way for at in (last, after)] == ["send", "look"]
    correction = dataclasses.replace(line, value_units=-5)
    assert [decide(correction, [], False, at, grace).way for at in (last, after)] == ["correction", "item"]
    old = dataclasses.replace(line, event_at=after - timedelta(days=35))
    assert decide(old, [], False, after, timedelta(hours=839)).way == "item"


LATE = timedelta(hours=73)


@pytest.mark.parametrize(
    ("reason", "age"),
    [("zero_quantity", timedelta(hours=2))]
    + [(reason, LATE) for reason in ("zero_quantity", "fraction_of_meter_unit", "too_many_digits", "no_meter")],
)
def test_an_amount_that_no_meter_will_rate_is_an_item(metering: Metering, reason: str, age: timedelta) -> None:
    """The flat amount of a line without usage, say; what has a quantity waits for its meter as long as that can take it."""
    metering.add("l1", 0 if reason == "zero_quantity" else None, age, hold_reason=reason)
    decisions, _ = plan_events(metering.warehouse.opened, metering.target, None, metering.settings)
    assert f"line l1: {reason}, goes as an invoice item" in describe_events(decisions)
    metering.add("nothing", 0, hold_reason="zero_quantity")
    metering.warehouse.set("nothing", "amount_minor = 0, hold_reason = 'zero_amount'")
    events, items = metering.sync()
    assert (events.as_items, events.held, items.created, metering.items()) == (1, 0, 1, ["l1"])


def test_an_amount_without_a_quantity_goes_as_what_it_adjusts_went(metering: Metering) -> None:
    """As an item beside an item. Where a meter has the quantity, Stripe rates it, and the invoice is complete without."""
    metering.settings = dataclasses.replace(metering.settings, finalizes=True)
    metering.add("item", 10, LATE)
    metering.add("event", 10)
    metering.sync()
    metering.correct("new price of item", 0, "item", hold_reason="zero_quantity", event_name=None)
    metering.correct("new price of event", 0, "event", hold_reason="zero_quantity", event_name=None)
    metering.warehouse.connection.execute(
        "update marts.stripe_invoice_items set invoice_id = 'inv_2' where line_id like 'new price%'"
    )
    for _ in range(2):
        events, items = metering.sync()
        assert (events.held, events.waiting, events.is_clean, items.is_clean) == (0, 0, True, True)
        assert metering.items() == ["item", "new price of item"]
    assert metering.total("event") == 10
    assert "draft" not in {invoice.status for invoice in metering.target.client.v1.invoices.list().data}


def test_an_amount_without_a_quantity_waits_for_what_it_adjusts(metering: Metering) -> None:
    """It goes nowhere as long as its line may still become an event, and is told while somebody has to do something."""
    metering.add("unknown", 10)
    metering.add("held", None, hold_reason="fraction_of_meter_unit")
    for line_id in ("unknown", "held"):
        metering.correct(f"new price of {line_id}", 0, line_id, hold_reason="zero_quantity")
    metering.fail("drop_before")
    events, items = metering.sync()
    assert (events.held, events.waiting, items.created) == (2, 1, 0)
    assert "line new price of unknown: it has an amount and no quantity, and waits" in events.problems[-1]
    decisions, _ = plan_events(metering.warehouse.opened, metering.target, None, metering.settings)
    assert "line new price of unknown: an amount without a quantity, once" in describe_events(decisions)
    # Too late for the meter by now.
    metering.wait(MONTHS)
    events, items = metering.sync()
    assert (events.as_items, events.is_clean, items.created) == (4, True, 4)


def test_adjustments_of_an_item_are_items(metering: Metering) -> None:
    """Also in time for the meter, as after a change of the route or the grace: it lacks the quantity that came before."""
    metering.add("l1", 10)
    metering.settings = dataclasses.replace(metering.settings, meter_grace=timedelta(hours=1))
    metering.sync()
    metering.settings = dataclasses.replace(metering.settings, meter_grace=timedelta(hours=72))
    metering.correct("more", 3, "l1")
    metering.correct("a fraction", None, "l1", hold_reason="fraction_of_meter_unit")
    metering.correct("not confirmed", 2, "l1", hold_reason="metric_not_confirmed")
    metering.warehouse.set("not confirmed", "hold_reason = 'metric_not_confirmed'")
    events, _ = metering.sync()
    assert (events.sent, events.as_items, events.held) == (0, 3, 1)
    assert metering.items() == ["a fraction", "l1", "more"]
    metering.add("another", 5)
    events, _ = metering.sync()
    assert (events.sent, metering.total("another")) == (1, 5)


def test_a_refused_event_stops_its_line_alone_and_goes_again_under_another_identifier(metering: Metering) -> None:
    metering.add("l1", 10)
    metering.add("l2", 20)

    def refuse(method: str, url: str, form: str, send: Any) -> Any:
        if url.endswith("/meter_events") and "l1-0" in form:
            return b'{"error": {"type": "invalid_request_error", "code": "no_meter", "message": "no"}}', 400, {}
        return send()

    events, _ = metering.sync(target_of(metering.server, refuse))
    assert (events.failed, events.sent) == (1, 1)
    assert "line l1: its meter event was not sent, because event l1-0: HTTP 400 no_meter: no" in events.problems[0]
    events, _ = metering.sync()
    assert (events.sent, events.is_clean, metering.total("l1") + metering.total("l2")) == (1, True, 60)
    assert metering.warehouse.steps("meter_event", "l1") == ["intent", "failed", "intent", "confirmed"]


def test_a_meter_that_differs_is_named_and_takes_no_event(metering: Metering) -> None:
    made = metering.target.client.v1.billing.meters.create(
        {"event_name": "calls", "display_name": "Calls", "default_aggregation": {"formula": "count"}}
    )
    metering.add("l1", 10)
    events, _ = metering.sync()
    assert events.failed == 1
    assert (
        f"meter calls ({made.id}) in Stripe: default_aggregation.formula is 'count', not 'sum'." in events.problems[0]
    )
    assert metering.total("l1") == 0
    assert metering.items() == []


def test_a_line_that_is_held_waits_in_both_outboxes(metering: Metering) -> None:
    metering.add("l1", None, hold_reason="fraction_of_meter_unit")
    metering.add("l2", 5, age=-timedelta(hours=1))
    events, items = metering.sync()
    assert (events.held, events.waiting, items.created) == (1, 1, 0)
    assert "line l2: its meter event waits" in events.problems[0]


def test_events_of_customers_who_may_not_be_created_are_held_and_named(metering: Metering) -> None:
    metering.settings = dataclasses.replace(metering.settings, creates_customers=False)
    metering.add("l1", 10)
    metering.correct("l2", -1, "l1")
    events, items = metering.sync()
    assert (events.held, events.is_clean, items.is_clean) == (2, True, True)
    sentence = (
        "customer customer_1: 2 meter events held, because METERING_STRIPE_CREATE_CUSTOMERS=0 and customers.csv has no "
        "stripe_customer_id for it"
    )
    assert sentence in metering.told
    decisions, _ = plan_events(metering.warehouse.opened, metering.target, None, metering.settings)
    assert describe_events(decisions).splitlines()[-1] == sentence
    assert metering.warehouse.log() == []
    customer = metering.target.client.v1.customers.create().id
    for line_id in ("l1", "l2"):
        metering.warehouse.set(line_id, f"stripe_customer_id = '{customer}'")
    events, _ = metering.sync()
    assert (events.sent, events.held, metering.total("l1")) == (2, 0, 9)


def test_an_event_keeps_its_way_when_the_route_changes(metering: Metering) -> None:
    metering.add("sent", 5)
    metering.sync()
    metering.add("unknown", 6)
    metering.fail("drop_after")
    metering.sync()
    metering.warehouse.connection.execute("delete from marts.stripe_meter_events")
    metering.warehouse.connection.execute("update marts.stripe_invoice_items set hold_reason = null")
    events, items = metering.sync()
    assert (items.created, metering.items()) == (0, [])
    assert "line unknown: was tried as a meter event without a known outcome" in events.problems[0]


def test_a_dry_run_says_what_would_go_where_and_sends_nothing(metering: Metering) -> None:
    metering.add("l1", 5)
    metering.correct("l2", -1, "l1")
    metering.add("l3", -1, event_name="bytes")
    decisions, lines = plan_events(metering.warehouse.opened, metering.target, None, metering.settings)
    assert describe_events(decisions).splitlines() == [
        "event l1-0: 5 on calls, customer customer_1",
        "line l2: -1 on calls, once other lines are settled",
        "line l3: -1 on bytes goes as an invoice item",
        "would send 1 meter events and look for 0; 0 there already, 1 as invoice items, 0 held, 1 waiting",
    ]
    assert {line.line_id: line.hold_reason for line in lines} == {"l1": "meter_event", "l2": "meter_event", "l3": None}
    assert metering.warehouse.log() == []
    assert plan_events(metering.warehouse.opened, metering.target, "2026-09")[0] == []


def test_values_that_arrived_are_found_by_their_sum() -> None:
    assert find_arrived([2, 3], 0) == ()
    assert find_arrived([2, 3], 3) == (1,)
    assert find_arrived([2, 2], 2) == (0,)
    assert find_arrived([2, 3], 5) == (0, 1)
    assert find_arrived([2, 3], 4) is None
    assert find_arrived([2, 3], -1) is None
    assert find_arrived([2, -3], -3) == (1,)
    # Both arrived, or neither: the sum is the same.
    assert find_arrived([3, -3], 0) == ()


# The local Stripe server's side


def test_the_local_server_checks_events_as_stripe_does(metering: Metering) -> None:
    services = metering.target.client.v1
    services.billing.meters.create(
        {"event_name": "calls", "display_name": "Calls", "default_aggregation": {"formula": "sum"}}
    )
    customer = services.customers.create().id
    now = int(metering.server.control.now())

    def send(identifier: str, value: str = "1", timestamp: int = now, name: str = "calls", who: str = customer) -> None:
        services.billing.meter_events.create(
            {
                "event_name": name,
                "identifier": identifier,
                "timestamp": timestamp,
                "payload": {"stripe_customer_id": who, "value": value},
            }
        )

    def refusal(*arguments: Any, **named: Any) -> str | None:
        with pytest.raises(stripe.InvalidRequestError) as refused:
            send(*arguments, **named)
        assert refused.value.http_status == 400
        return refused.value.code or refused.value.param

    send("a")
    assert refusal("a") == "identifier"
    assert refusal("b", value="1.5") == "meter_event_invalid_value"
    assert refusal("b", value="--1") == "meter_event_invalid_value"
    assert refusal("b", timestamp=now - 36 * 86400) == "timestamp_too_far_in_past"
    assert refusal("b", timestamp=now + 600) == "timestamp_in_future"
    assert refusal("b", name="other") == "no_meter"
    assert refusal("b" * 101) == "identifier"
    send("a customer that is not there is taken and never counts", who="cus_none")
    metering.wait(DAY)
    send("a", value="4")
    send("negative", value="-2")
    (meter,) = services.billing.meters.list().data
    minute = now - now % 60
    summary = services.billing.meters.event_summaries.list(
        meter.id, {"customer": customer, "start_time": minute, "end_time": minute + 60}
    )
    assert [found.aggregated_value for found in summary.data] == [3]
    with pytest.raises(stripe.InvalidRequestError, match="minute boundaries"):
        services.billing.meters.event_summaries.list(
            meter.id, {"customer": customer, "start_time": minute + 1, "end_time": minute + 60}
        )
