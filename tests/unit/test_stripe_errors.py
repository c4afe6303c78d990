"""Refusals and rate limits: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import stripe

from orchestration.lib.stripe_errors import with_backoff
from orchestration.lib.stripe_sync import sync_invoice_items
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_target import StripeTarget
from orchestration.local_stripe import LocalStripeServer
from tests.unit.stripe_outbox import (
    SECRET,
    Answer,
    Crash,
    Warehouse,
    answer_with,
    count_objects,
    crash_after,
    finalized_before_lines,
    items_by_line,
    posts,
    set_invoice_status,
    sync,
    target_of,
    three_invoices,
)

# Refusals


def test_a_refused_line_stops_alone_and_is_sent_once_put_right(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1")
    warehouse.add("l2", charge_code="x" * 501)
    warehouse.add("l3")
    report = sync(warehouse, target)
    assert (report.created, report.failed, report.is_clean) == (2, 1, False)
    assert sorted(items_by_line(target)) == ["l1", "l3"]
    (problem,) = report.problems
    assert "invoice_item l2" in problem
    assert "500 characters" in problem
    status, code, body = warehouse.connection.execute(
        "select http_status, error_code, error_body from ops.stripe_sync_log where step = 'failed' and entity_key = 'l2'"
    ).fetchall()[-1]
    assert (status, code) == (400, "invalid_request_error")
    assert "metering_charge_code" in body
    warehouse.set("l2", "charge_code = 'calls'")
    assert sync(warehouse, target) == SyncReport(target.account_id, created=1, already_confirmed=2)
    # Once with the others, once alone, once put right.
    assert warehouse.steps("invoice_item", "l2") == ["intent", "failed"] * 2 + ["intent", "confirmed"]


def test_a_refusal_that_stripe_stored_does_not_come_back_once_put_right(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path
) -> None:
    warehouse.add("l1")
    sync(warehouse, target)
    warehouse.add("l2")
    report = sync(warehouse, target_of(server, finalized_before_lines(state)))
    assert (report.failed, report.already_confirmed) == (1, 1)
    assert "invoice_not_editable" in report.problems[0]
    set_invoice_status(state, "draft")
    assert sync(warehouse, target).created == 1
    assert count_objects(target) == (1, 1, 2)


def test_a_refused_customer_fails_its_lines_alone(warehouse: Warehouse, target: StripeTarget) -> None:
    warehouse.add("l1", customer_id="x" * 501)
    warehouse.add("l2", customer_id="x" * 501, invoice_id="inv_2")
    warehouse.add("l3", customer_id="customer_2", invoice_id="inv_3")
    warehouse.add("l4", customer_id="customer_3", invoice_id="inv_4", stripe_customer_id="cus_unknown")
    report = sync(warehouse, target)
    assert (report.created, report.failed, report.is_clean) == (1, 3, False)
    assert len(report.problems) == 3
    assert any("No such customer: 'cus_unknown'" in problem for problem in report.problems)
    assert warehouse.steps("customer", "x" * 501) == ["intent", "failed"]
    assert warehouse.steps("invoice", "inv_4") == []
    assert list(items_by_line(target)) == ["l3"]


def test_an_idempotency_error_is_resolved_by_looking_again(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    """Stripe has the first try, a lookup does not show it yet, and the same key brings other parameters."""
    warehouse.add("l1", description="first")
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))
    warehouse.set("l1", "description = 'second'")

    def stale(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if method == "get" and "/lines" in url:
            return b'{"object": "list", "data": [], "has_more": false, "url": "/v1/invoices/in/lines"}', 200, {}
        return send()

    report = sync(warehouse, target_of(server, stale))
    assert (report.failed, report.created) == (1, 0)
    assert "idempotency_error" in report.problems[0]
    assert sync(warehouse, target).confirmed_by_lookup == 1
    assert count_objects(target)[2] == 1


def test_a_refused_key_ends_the_run(warehouse: Warehouse, server: LocalStripeServer) -> None:
    three_invoices(warehouse)
    message = f"Invalid API Key provided: {SECRET}"
    body = json.dumps({"error": {"type": "invalid_request_error", "message": message}})
    report = sync(warehouse, target_of(server, answer_with(posts("/add_lines"), 401, body)))
    assert (report.failed, report.created, report.is_clean) == (2, 0, False)
    assert "STRIPE_API_KEY" in report.problems[0]
    assert warehouse.steps("invoice", "inv_2") == []
    assert SECRET not in str(report)
    assert SECRET not in str(warehouse.log())


# Rate limits


def test_a_rate_limit_waits_as_long_as_stripe_asks(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.add("l1")
    refusals = iter(
        [
            (
                b'{"error": {"message": "slow"}}',
                429,
                requests.structures.CaseInsensitiveDict({"retry-after": "7"}),
            ),
            (b'{"error": {"message": "slow"}}', 429, {}),
        ]
    )

    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        refusal = next(refusals, None) if posts("/add_lines")(method, url, form) else None
        return send() if refusal is None else refusal

    waits: list[float] = []
    report = sync_invoice_items(
        warehouse.opened,
        target_of(server, fault),
        billing_period=None,
        progress=lambda message: None,
        sleep=waits.append,
    )
    assert report == SyncReport(target.account_id, created=1)
    assert waits[0] == 7
    assert 1 <= waits[1] <= 1.5
    assert count_objects(target)[2] == 1


def test_a_rate_limit_that_lasts_leaves_the_line_open(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.add("l1")
    waits: list[float] = []
    report = sync_invoice_items(
        warehouse.opened,
        target_of(server, answer_with(posts("/add_lines"), 429, '{"error": {"message": "slow"}}')),
        billing_period=None,
        progress=lambda message: None,
        sleep=waits.append,
    )
    assert (report.unknown, report.failed, len(waits)) == (1, 0, 5)
    assert waits == sorted(waits)
    assert warehouse.steps("invoice_item", "l1") == ["intent"]
    assert sync(warehouse, target).created == 1


def test_a_wait_longer_than_a_minute_is_not_waited_for() -> None:
    def limited() -> None:
        raise stripe.RateLimitError("slow", http_status=429, headers={"Retry-After": "61"})

    with pytest.raises(stripe.RateLimitError):
        with_backoff(limited, lambda seconds: pytest.fail(f"waited {seconds} s"))
