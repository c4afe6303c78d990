"""Lines that go to Stripe in one call: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestration.lib.stripe_target import StripeTarget
from orchestration.local_stripe import LocalStripeServer
from tests.unit.stripe_outbox import (
    Answer,
    Crash,
    HttpFault,
    Warehouse,
    count_objects,
    crash_after,
    finalized_before_lines,
    items_by_line,
    posts,
    sync,
    target_of,
)


def add_lines_calls(calls: list[int]) -> HttpFault:
    """Notes how many lines each call has."""

    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if url.endswith("/add_lines"):
            calls.append(form.count("metering_line_id"))
        return send()

    return fault


def test_a_refused_call_is_taken_apart(warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget) -> None:
    """By the line that Stripe names; where it names none, into halves."""
    for number in range(8):
        warehouse.add(f"l{number}", charge_code="x" * 501 if number == 5 else "calls")
    calls: list[int] = []
    report = sync(warehouse, target_of(server, add_lines_calls(calls)))
    assert (calls, report.created, report.failed) == ([8, 7, 1], 7, 1)
    for number in range(8):
        warehouse.add(f"m{number}", invoice_id="inv_2")

    def refuse(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if posts("/add_lines", "=m5")(method, url, form):
            calls.append(form.count("metering_line_id"))
            return b'{"error": {"type": "card_error", "message": "no"}}', 402, {}
        return add_lines_calls(calls)(method, url, form, send)

    calls.clear()
    report = sync(warehouse, target_of(server, refuse))
    assert (calls, report.created, report.failed) == ([1, 8, 4, 4, 2, 1, 1, 2], 7, 2)
    assert sorted(items_by_line(target)) == [f"{owner}{number}" for owner in "lm" for number in (0, 1, 2, 3, 4, 6, 7)]


def test_lines_that_a_refused_call_has_added_all_the_same_are_not_sent_again(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    """Stripe does not say that it adds all lines of a call or none."""
    for line_id in ("l1", "l2", "l3"):
        warehouse.add(line_id)
    refused: list[str] = []

    def add_one_and_refuse(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if not url.endswith("/add_lines") or refused:
            return send()
        refused.append(url)
        lines: Any = [{"amount": 100, "metadata": {"metering_line_id": "l2"}}]
        target.client.v1.invoices.add_lines(url.split("/")[-2], {"lines": lines})
        return b'{"error": {"type": "invalid_request_error", "message": "no"}}', 400, {}

    report = sync(warehouse, target_of(server, add_one_and_refuse))
    assert (report.created, report.confirmed_by_lookup, report.is_clean) == (2, 1, True)
    assert count_objects(target)[2] == 3


def test_an_invoice_that_takes_no_lines_refuses_them_in_one_call(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path
) -> None:
    for line_id in ("l1", "l2", "l3"):
        warehouse.add(line_id)
    calls: list[int] = []
    report = sync(warehouse, target_of(server, finalized_before_lines(state, add_lines_calls(calls))))
    assert (calls, report.failed, len(report.problems)) == ([3], 3, 1)
    assert "a call of 3 lines from l1 on was refused" in report.problems[0]
    assert "invoice_not_editable" in report.problems[0]
    assert sync(warehouse, target).created == 3


def test_lines_of_a_call_without_an_outcome_go_together_again_under_its_key(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    """Stripe may still be at it, so that a look shows nothing: then only the key keeps them from being doubled."""
    warehouse.add("l2")
    warehouse.add("l3")
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))
    warehouse.add("l1")

    def stale(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if method == "get" and "/lines" in url and not calls:
            return b'{"object": "list", "data": [], "has_more": false, "url": "/v1/invoices/in/lines"}', 200, {}
        return add_lines_calls(calls)(method, url, form, send)

    calls: list[int] = []
    report = sync(warehouse, target_of(server, stale))
    assert (calls, report.created, report.is_clean) == ([1, 2], 3, True)
    assert count_objects(target)[2] == 3
