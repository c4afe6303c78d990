"""The v2 stream of meter events: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

import dataclasses
import json
import logging
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe
from stripe.params.v2.billing import MeterEventStreamCreateParamsEvent

from orchestration.lib.stripe_meter_stream import stream_event
from orchestration.lib.stripe_meters import MeterReport
from orchestration.local_stripe import Fault
from orchestration.local_stripe.control import FaultKind
from tests.unit.stripe_metering import DAY, MONTHS, Metering
from tests.unit.stripe_outbox import HttpFault, target_of

STREAM = "/v2/billing/meter_event_stream"
SESSIONS = "/v2/billing/meter_event_session"


@pytest.fixture
def streaming(metering: Metering) -> Metering:
    metering.settings = dataclasses.replace(metering.settings, meter_api="v2")
    metering.events_path = STREAM
    return metering


def calls_of(calls: list[str], answer: HttpFault | None = None) -> HttpFault:
    """Note the identifiers of each call of the stream, and each new session."""

    def pass_on(method: str, url: str, form: str, send: Any) -> Any:
        if url.endswith(STREAM):
            calls.append(" ".join(event["identifier"] for event in json.loads(form)["events"]))
        elif url.endswith(SESSIONS):
            calls.append("session")
        return send() if answer is None else answer(method, url, form, send)

    return pass_on


def test_events_go_a_hundred_in_a_call_and_corrections_after_them(streaming: Metering) -> None:
    streaming.add("l000", 1)
    for number in range(1, 150):
        streaming.correct(f"l{number:03}", 2 if number > 2 else -5, "l000")
    calls: list[str] = []
    events, items = streaming.sync(target_of(streaming.server, calls_of(calls)))
    assert (events.sent, events.is_clean, items.created) == (150, True, 0)
    assert [call if call == "session" else len(call.split()) for call in calls] == ["session", 100, 48, "session", 2]
    assert calls[-1] == "l001-0 l002-0"
    assert streaming.total("l000") == 1 + 147 * 2 - 10
    assert streaming.warehouse.steps("meter_event", "l149") == ["intent", "confirmed"]
    events, _ = streaming.sync()
    assert events == MeterReport(already_confirmed=150)


@pytest.mark.parametrize(
    ("kind", "arrives"), [("drop_before", False), ("drop_after", True), ("error_before", False), ("error_after", True)]
)
@pytest.mark.parametrize("pause", [timedelta(0), DAY, MONTHS])
def test_a_call_of_unknown_outcome_counts_once(
    streaming: Metering, kind: FaultKind, arrives: bool, pause: timedelta
) -> None:
    streaming.add("l1", 10)
    streaming.correct("l2", 20, "l1")
    streaming.fail(kind)
    events, items = streaming.sync()
    assert (events.unknown, items.created) == (2, 0)
    streaming.wait(pause)
    events, items = streaming.sync()
    as_items = pause == MONTHS and not arrives
    assert streaming.items() == (["l1", "l2"] if as_items else [])
    assert streaming.total("l1") == (0 if as_items else 30)
    events, items = streaming.sync()
    assert (events.is_clean, events.sent, items.is_clean) == (True, 0, True)


def test_a_refused_call_is_taken_apart_until_the_event_at_fault_stands_alone(streaming: Metering) -> None:
    streaming.add("l0", 1)
    for number in range(1, 5):
        streaming.correct(f"l{number}", 1, "l0")

    def refuse(method: str, url: str, form: str, send: Any) -> Any:
        if url.endswith(STREAM) and "l3-0" in form:
            return b'{"error": {"type": "invalid_request_error", "code": "odd", "message": "no"}}', 400, {}
        return send()

    calls: list[str] = []
    events, _ = streaming.sync(target_of(streaming.server, calls_of(calls, refuse)))
    assert calls == [
        "session",
        "l0-0 l1-0 l2-0 l3-0 l4-0",
        "l0-0 l1-0",
        "l2-0 l3-0 l4-0",
        "l2-0",
        "l3-0 l4-0",
        "l3-0",
        "l4-0",
    ]
    assert (events.sent, events.failed, streaming.total("l0")) == (4, 1, 4)
    assert events.problems == ["line l3: its meter event was not sent, because event l3-0: HTTP 400 odd: no"]
    events, _ = streaming.sync()
    assert (events.sent, events.is_clean, streaming.total("l0")) == (1, True, 5)
    assert streaming.warehouse.steps("meter_event", "l3")[-2:] == ["intent", "confirmed"]


def test_a_session_is_renewed_before_its_end_and_when_stripe_says_that_it_is_over(streaming: Metering) -> None:
    streaming.add("l0", 1)
    for number in range(1, 250):
        streaming.correct(f"l{number:03}", 1, "l0")

    def pass_time(minutes: float, tells: bool) -> HttpFault:
        def pass_on(method: str, url: str, form: str, send: Any) -> Any:
            answer = send()
            if url.endswith(STREAM) and answer[1] == 200:
                if tells:
                    streaming.wait(timedelta(minutes=minutes))
                else:
                    # Stripe's clock alone moves: the session is over before its time.
                    streaming.server.control.advance(minutes * 60)
                    streaming.offset -= timedelta(minutes=minutes)
            return answer

        return pass_on

    calls: list[str] = []
    events, _ = streaming.sync(target_of(streaming.server, calls_of(calls, pass_time(14, tells=True))))
    assert [call for call in calls if call == "session"] == ["session"] * 3
    assert (len(calls), events.sent, events.is_clean) == (6, 250, True)

    streaming.warehouse.connection.execute("delete from ops.stripe_sync_log where entity = 'meter_event'")
    calls.clear()
    events, _ = streaming.sync(target_of(streaming.server, calls_of(calls, pass_time(16, tells=False))))
    # The second call and the third are refused, and made again under a new session.
    assert [call == "session" for call in calls] == [True, False, False, True, False, False, True, False]
    assert (events.sent, events.is_clean) == (250, True)


def test_without_a_session_nothing_is_tried(streaming: Metering) -> None:
    streaming.add("l1", 10)

    def refuse(method: str, url: str, form: str, send: Any) -> Any:
        if url.endswith(SESSIONS):
            return b'{"error": {"type": "invalid_request_error", "message": "no stream here"}}', 403, {}
        return send()

    events, items = streaming.sync(target_of(streaming.server, refuse))
    assert "no session of the meter event stream could be opened: HTTP 403" in events.problems[0]
    assert (streaming.warehouse.steps("meter_event", "l1"), items.created) == ([], 0)


def test_a_rate_limit_is_waited_for(streaming: Metering) -> None:
    streaming.add("l1", 10)
    streaming.server.control.add(Fault("rate_limit", "POST", STREAM, times=3, seconds=1))
    events, _ = streaming.sync()
    assert (events.sent, events.is_clean, streaming.total("l1")) == (1, True, 10)


def test_the_token_of_a_session_shows_up_nowhere(
    streaming: Metering, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    streaming.add("l1", 10)
    tokens: list[str] = []

    def repeat_it(method: str, url: str, form: str, send: Any) -> Any:
        answer = send()
        if url.endswith(SESSIONS):
            tokens.append(json.loads(answer[0])["authentication_token"])
        if url.endswith(STREAM):
            error = {"type": "invalid_request_error", "message": f"bad token {tokens[-1]}"}
            return json.dumps({"error": error}).encode(), 400, {}
        return answer

    events, _ = streaming.sync(target_of(streaming.server, repeat_it))
    assert "bad token [session token]" in events.problems[0]
    printed = capfd.readouterr()
    shown = f"{events}{streaming.warehouse.log()}{printed.out}{printed.err}{caplog.text}"
    assert tokens[0] not in shown


def test_an_event_that_is_found_invalid_goes_again(streaming: Metering) -> None:
    streaming.add("l1", 10)
    streaming.warehouse.set("l1", "stripe_customer_id = 'cus_gone'")
    events, _ = streaming.sync()
    assert (events.sent, events.is_clean) == (1, True)
    streaming.wait(timedelta(seconds=30))
    streaming.warehouse.set("l1", "stripe_customer_id = null")
    events, _ = streaming.sync()
    assert (events.sent, streaming.total("l1")) == (1, 10)
    assert "line l1: Stripe took its event l1-0 and found it invalid afterwards" in events.problems[0]


def test_timestamps_are_rfc_3339() -> None:
    assert streamed("l-0", datetime(2026, 10, 31, 23, 59), {})["timestamp"] == "2026-10-31T23:59:00Z"


# The local Stripe server's side


def streamed(
    identifier: str, at: datetime, payload: dict[str, str], name: str = "calls"
) -> MeterEventStreamCreateParamsEvent:
    seconds = int(at.replace(tzinfo=UTC).timestamp())
    return stream_event({"event_name": name, "identifier": identifier, "timestamp": seconds, "payload": payload})


def test_the_local_stream_takes_everything_and_reports_what_is_invalid(metering: Metering, tmp_path: Path) -> None:
    client = metering.target.client
    archived, _ = (
        client.v1.billing.meters.create(
            {"event_name": name, "display_name": name, "default_aggregation": {"formula": "sum"}}
        )
        for name in ("old", "calls")
    )
    with closing(sqlite3.connect(tmp_path / "stripe.sqlite")) as connection, connection:
        connection.execute("update objects set status = 'inactive' where id = ?", [archived.id])
    customer = client.v1.customers.create().id
    now = metering.now()

    def event(identifier: str, at: datetime = now, name: str = "calls", who: str = customer, value: str = "1") -> Any:
        return streamed(identifier, at, {"stripe_customer_id": who, "value": value}, name)

    token = client.v2.billing.meter_event_session.create().authentication_token
    send = client.v2.billing.meter_event_stream.create
    batch = [
        event("good"),
        event("good", value="7"),
        event("negative", value="-3"),
        event("who", who="cus_none"),
        event("value", value="1.5"),
        event("digits", value="1" * 16),
        event("old", at=now - timedelta(days=36)),
        event("future", at=now + timedelta(minutes=6)),
        event("archived", name="old"),
        event("nowhere", name="none"),
        event("nobody") | {"payload": {"value": "1"}},
    ]
    send({"events": batch}, {"api_key": token})
    metering.wait(timedelta(seconds=20))
    # A second one is dropped and no error.
    send({"events": [event("who")]}, {"api_key": token})
    metering.wait(timedelta(seconds=20))
    reports = client.v2.core.events.list().data
    found = {
        sample.request.identifier: (report.type.removeprefix("v1.billing.meter."), kind.code)
        for report in reports
        for kind in report.data.reason.error_types  # type: ignore[attr-defined]
        for sample in kind.sample_errors
    }
    invalid = "error_report_triggered"
    assert found == {
        "who": (invalid, "meter_event_customer_not_found"),
        "value": (invalid, "meter_event_invalid_value"),
        "digits": (invalid, "meter_event_value_too_many_digits"),
        "old": (invalid, "timestamp_too_far_in_past"),
        "future": (invalid, "timestamp_in_future"),
        "archived": (invalid, "archived_meter"),
        "nowhere": ("no_meter_found", "no_meter"),
        "nobody": (invalid, "meter_event_no_customer_defined"),
    }


def test_the_local_stream_refuses_what_is_no_batch(metering: Metering) -> None:
    client = metering.target.client
    token = client.v2.billing.meter_event_session.create().authentication_token
    event = streamed("e", metering.now(), {"stripe_customer_id": "c", "value": "1"})

    def refusal(events: Any, key: str = token) -> tuple[int | None, str | None]:
        with pytest.raises(stripe.StripeError) as refused:
            client.v2.billing.meter_event_stream.create({"events": events}, {"api_key": key})
        return refused.value.http_status, refused.value.user_message

    assert refusal([event] * 101) == (400, "Invalid events: 101 events, at most 100 are allowed")
    assert refusal([]) == (400, "Invalid events: must be a list of events")
    assert refusal([event | {"colour": "red"}]) == (400, "Received unknown parameter: events[0][colour]")
    assert refusal([event | {"payload": {"value": 1}}]) == (400, "Invalid events[0][payload][value]: 1 is no string")
    assert refusal([event | {"timestamp": "2026-10-01T00:00:00"}])[0] == 400
    assert refusal([{"event_name": "calls"}]) == (400, "Missing required param: events[0][payload].")
    assert refusal([event], "sk_test_key")[0] == 401
    metering.wait(timedelta(minutes=15))
    with pytest.raises(stripe.TemporarySessionExpiredError) as expired:
        client.v2.billing.meter_event_stream.create({"events": [event]}, {"api_key": token})
    assert (expired.value.http_status, expired.value.code) == (401, "billing_meter_event_session_expired")
    answer = requests.post(
        f"{metering.server.url}{SESSIONS}",
        data={"a": "b"},
        headers={"Authorization": "Bearer sk_test_key"},
        timeout=20,
        proxies={"http": ""},
    )
    assert "/v2 takes application/json" in answer.json()["error"]["message"]
