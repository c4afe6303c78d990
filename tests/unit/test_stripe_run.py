"""Crashes and lost answers: a real DuckDB file, the real SDK, the local Stripe server over HTTP."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe

from orchestration.lib.stripe_parameters import batch_key
from orchestration.lib.stripe_settings import InvoiceSettings
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_tables import read_outbox
from orchestration.lib.stripe_target import StripeTarget
from orchestration.local_stripe import LocalStripeServer
from tests.unit.stripe_outbox import (
    SECRET,
    Answer,
    Crash,
    FaultyHttp,
    Warehouse,
    answer_with,
    count_objects,
    crash_after,
    crash_before,
    forget_idempotency,
    items_by_line,
    posts,
    sync,
    target_of,
    three_invoices,
)


@pytest.mark.parametrize("keys_expired", [False, True], ids=["keys kept", "keys expired"])
@pytest.mark.parametrize(
    ("path", "containing", "entity", "entity_key"),
    [
        ("/v1/customers", "", "customer", "customer_1"),
        ("/v1/invoices", "", "invoice", "inv_1"),
        ("/add_lines", "=l2", "invoice_item", "l2"),
    ],
)
def test_a_crash_after_stripe_created_the_object_does_not_double_it(
    warehouse: Warehouse,
    server: LocalStripeServer,
    target: StripeTarget,
    state: Path,
    path: str,
    containing: str,
    entity: str,
    entity_key: str,
    keys_expired: bool,
) -> None:
    for line_id in ("l1", "l2", "l3"):
        warehouse.add(line_id)
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts(path, containing))))
    assert warehouse.steps(entity, entity_key) == ["intent"]
    if keys_expired:
        forget_idempotency(state)
    report = sync(warehouse, target)
    assert report.is_clean
    assert report.confirmed_by_lookup == (3 if entity == "invoice_item" else 0)
    assert report.created + report.confirmed_by_lookup == 3
    assert count_objects(target) == (1, 1, 3)
    assert warehouse.steps(entity, entity_key) == ["intent", "confirmed"]
    assert sync(warehouse, target) == SyncReport(target.account_id, already_confirmed=3)
    assert count_objects(target) == (1, 1, 3)


@pytest.mark.parametrize("path", ["/v1/customers", "/v1/invoices", "/add_lines"])
def test_a_crash_before_the_call_sends_once(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, path: str
) -> None:
    warehouse.add("l1")
    for _ in range(2):
        with pytest.raises(Crash):
            sync(warehouse, target_of(server, crash_before(posts(path))))
    assert sync(warehouse, target) == SyncReport(target.account_id, created=1)
    assert count_objects(target) == (1, 1, 1)


def test_a_lookup_finds_a_line_beyond_the_first_page(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path
) -> None:
    for number in range(119):
        warehouse.add(f"l{number:03}", amount_minor=1)
    assert sync(warehouse, target).created == 119
    warehouse.add("l999", amount_minor=1)
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines", "=l999"))))
    forget_idempotency(state)
    report = sync(warehouse, target)
    assert (report.confirmed_by_lookup, report.created) == (1, 0)
    assert count_objects(target)[2] == 120


@pytest.mark.parametrize(
    "change",
    [
        "line_id = 'l2'",
        "currency = 'EUR', invoice_id = 'inv_eur'",
        "customer_id = 'customer_2'",
        "hold_reason = 'wait'",
    ],
)
def test_a_line_of_unknown_outcome_that_changed_is_reported_and_sent_nowhere(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, change: str
) -> None:
    warehouse.add("l1", amount_minor=100)
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))
    warehouse.set("l1", change)
    for _ in range(3):
        report = sync(warehouse, target)
        assert not report.is_clean
        assert any("without a known outcome" in problem for problem in report.problems)
    assert count_objects(target)[2] == 1
    # Put back as it was, it is found.
    warehouse.set("l2" if "line_id" in change else "l1", "line_id = 'l1', currency = 'USD', invoice_id = 'inv_1', "
                  "customer_id = 'customer_1', hold_reason = null")  # fmt: skip
    assert sync(warehouse, target).confirmed_by_lookup == 1
    assert count_objects(target)[2] == 1


def test_a_line_changed_between_crash_and_lookup_is_reported_with_both_amounts(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.add("l1", amount_minor=100)
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))
    warehouse.set("l1", "amount_minor = 300")
    for confirmed_by_lookup in (1, 0):
        report = sync(warehouse, target)
        assert (report.confirmed_by_lookup, report.changed_after_sync) == (confirmed_by_lookup, 1)
        (change,) = report.changes
        assert (change.synced_amount_minor, change.current_amount_minor) == (100, 300)
    assert items_by_line(target)["l1"].amount == 100


@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
def test_a_lost_connection_stops_the_run_and_the_next_resolves_it(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path, committed: bool
) -> None:
    three_invoices(warehouse)
    is_line = posts("/add_lines", "=l3")

    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if is_line(method, url, form):
            if committed:
                send()
            raise stripe.APIConnectionError("Read timed out.")  # type: ignore[no-untyped-call]
        return send()

    report = sync(warehouse, target_of(server, fault))
    assert (report.created, report.unknown, report.failed, report.is_clean) == (2, 1, 0, False)
    assert len(report.problems) == 1
    assert "l3" in report.problems[0]
    assert "Run the sync again" in report.problems[0]
    assert warehouse.steps("invoice_item", "l3") == ["intent"]
    assert warehouse.steps("invoice", "inv_3") == []
    forget_idempotency(state)
    report = sync(warehouse, target)
    assert report.is_clean
    assert report.confirmed_by_lookup == (1 if committed else 0)
    assert count_objects(target) == (2, 3, 4)


def test_a_server_error_is_retried_under_one_key_then_left_unknown(
    warehouse: Warehouse,
    server: LocalStripeServer,
    target: StripeTarget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)
    warehouse.add("l1")
    keys: list[str] = []

    class Recording(FaultyHttp):
        def request(self, method: str, url: str, headers: Any, post_data: Any = None) -> Answer:  # type: ignore[override]
            if url.endswith("/add_lines"):
                keys.append(headers["Idempotency-Key"])
            return super().request(method, url, headers, post_data)

    client = stripe.StripeClient(
        SECRET,
        base_addresses={"api": server.url},
        max_network_retries=3,
        http_client=Recording(answer_with(posts("/add_lines"), 503)),
    )
    report = sync(warehouse, dataclasses.replace(target, client=client))
    assert (report.unknown, report.is_clean) == (1, False)
    assert keys == [batch_key(target.account_id, read_outbox(warehouse.opened), [0])] * 4
    assert warehouse.steps("invoice_item", "l1") == ["intent"]
    assert sync(warehouse, target).created == 1


@pytest.mark.parametrize("status", [409, 500, 502])
def test_a_conflict_or_server_error_leaves_the_line_open_and_stops(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, status: int
) -> None:
    three_invoices(warehouse)
    body = '{"error": {"type": "api_error", "message": "try later"}}'
    report = sync(warehouse, target_of(server, answer_with(posts("/add_lines"), status, body)))
    assert (report.unknown, report.failed, report.created) == (1, 0, 0)
    assert warehouse.steps("invoice_item", "l1") == warehouse.steps("invoice_item", "l2") == ["intent"]
    assert warehouse.steps("invoice_item", "l3") == []
    assert sync(warehouse, target).created == 4
    assert count_objects(target) == (2, 3, 4)


@pytest.mark.parametrize("committed", [False, True], ids=["not created", "created"])
def test_a_server_error_that_stripe_stored_is_resolved_by_another_key(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, committed: bool
) -> None:
    warehouse.add("l1")
    stored_under = batch_key(target.account_id, read_outbox(warehouse.opened), [0])
    executed: list[str] = []

    class Storing(FaultyHttp):
        """Executes a key once, with or without effect, and answers it with the same 500 ever after."""

        def request(self, method: str, url: str, headers: Any, post_data: Any = None) -> Answer:  # type: ignore[override]
            if headers.get("Idempotency-Key") != stored_under:
                return super().request(method, url, headers, post_data)
            if not executed and committed:
                super().request(method, url, headers, post_data)
            replayed = {"Idempotent-Replayed": "true"} if executed else {}
            executed.append(stored_under)
            body = b'{"error": {"type": "api_error", "message": "An error occurred."}}'
            return body, 500, requests.structures.CaseInsensitiveDict(replayed)

    client = stripe.StripeClient(
        SECRET,
        base_addresses={"api": server.url},
        max_network_retries=0,
        http_client=Storing(lambda method, url, form, send: send()),
    )
    failing = dataclasses.replace(target, client=client)
    runs = [sync(warehouse, failing) for _ in range(1 if committed else 3)]
    assert runs[0].unknown == 1
    if committed:
        assert sync(warehouse, failing).confirmed_by_lookup == 1
    else:
        assert (runs[1].unknown, runs[2].created) == (1, 1)
        assert warehouse.steps("invoice_item", "l1") == ["intent", "intent", "failed", "intent", "confirmed"]
    assert count_objects(target) == (1, 1, 1)


def test_a_failed_lookup_stops_the_run_and_creates_nothing(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.add("l1")
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))

    def fault(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        if method == "get" and "/lines" in url:
            return b"{}", 500, {}
        return send()

    report = sync(warehouse, target_of(server, fault))
    assert (report.unknown, report.created, report.is_clean) == (1, 0, False)
    assert count_objects(target) == (1, 1, 1)
    assert sync(warehouse, target).confirmed_by_lookup == 1


def test_a_line_that_stripe_takes_and_does_not_show_has_no_known_outcome(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.add("l1")

    def hide(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        body, status, headers = send()
        if url.endswith("/add_lines"):
            invoice = json.loads(body)
            invoice["lines"]["data"] = []
            body = json.dumps(invoice).encode()
        return body, status, headers

    report = sync(warehouse, target_of(server, hide))
    assert (report.created, report.unknown, report.is_clean) == (0, 1, False)
    assert "does not show every line" in report.problems[0]
    assert sync(warehouse, target).confirmed_by_lookup == 1
    assert count_objects(target)[2] == 1


def test_an_amount_that_stripe_changes_is_reported(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget
) -> None:
    warehouse.add("l1", amount_minor=100)

    def change(method: str, url: str, form: str, send: Callable[[], Answer]) -> Answer:
        body, status, headers = send()
        if url.endswith("/add_lines"):
            body = body.replace(b'"amount": 100', b'"amount": 99')
        return body, status, headers

    report = sync(warehouse, target_of(server, change), settings=InvoiceSettings(finalizes=True))
    assert (report.created, report.changed_after_sync) == (1, 1)
    assert "99 USD in Stripe, now 100 USD" in report.problems[0]
    # The message says to correct the draft, so it stays one.
    assert report.finalized == 0
