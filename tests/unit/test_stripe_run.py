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
from orchestration.lib.stripe_readback import read_back_invoices
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
    delete_drafts,
    finalized_before_lines,
    forget_idempotency,
    items_by_line,
    posts,
    set_invoice_status,
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
    assert keys == [batch_key(target.account_id, "inv_1", read_outbox(warehouse.opened), [0])] * 4
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
    stored_under = batch_key(target.account_id, "inv_1", read_outbox(warehouse.opened), [0])
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


# Lines for an invoice that is no draft any more


@pytest.mark.parametrize("crashes", [(), ("/v1/invoices",), ("/add_lines",), ("/v1/invoices", "/add_lines")])
def test_lines_that_come_after_an_invoice_was_finalised_go_on_a_further_one_once(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path, crashes: tuple[str, ...]
) -> None:
    warehouse.add("l1")
    sync(warehouse, target)
    for number, line_ids in enumerate((("l2", "l3"), ("l4",)), start=2):
        for line_id in line_ids:
            warehouse.add(line_id)
        set_invoice_status(state, "open")
        for path in crashes:
            with pytest.raises(Crash):
                sync(warehouse, target_of(server, crash_after(posts(path))))
            forget_idempotency(state)
        report = sync(warehouse, target)
        assert report.is_clean
        assert report.created + report.confirmed_by_lookup == len(line_ids)
        assert count_objects(target) == (1, number, number + 1)
    read = read_back_invoices(target)
    assert sorted(invoice.line_ids for invoice in read) == [("l1",), ("l2", "l3"), ("l4",)]
    assert {(invoice.metering_invoice_id, invoice.customer_id) for invoice in read} == {("inv_1", read[0].customer_id)}
    parts = [target.client.v1.invoices.retrieve(invoice.stripe_invoice_id).metadata for invoice in read]
    assert {part and part["metering_invoice_part"] for part in parts} == {"1", "1.2", "1.3"}
    assert sync(warehouse, target) == SyncReport(target.account_id, already_confirmed=4)


def test_a_later_line_joins_the_further_invoice_while_it_is_a_draft(
    warehouse: Warehouse, target: StripeTarget, state: Path
) -> None:
    warehouse.add("l1")
    sync(warehouse, target)
    set_invoice_status(state, "paid")
    for line_id in ("l2", "l3"):
        warehouse.add(line_id)
        assert sync(warehouse, target).created == 1
    assert sorted(invoice.line_ids for invoice in read_back_invoices(target)) == [("l1",), ("l2", "l3")]


@pytest.mark.parametrize("status", ["open", "void"])
def test_a_line_of_unknown_outcome_is_looked_for_on_the_finalised_invoice_first(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path, status: str
) -> None:
    warehouse.add("l1")
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))
    forget_idempotency(state)
    set_invoice_status(state, status)
    warehouse.add("l2")
    report = sync(warehouse, target)
    assert (report.confirmed_by_lookup, report.created, report.is_clean) == (1, 1, True)
    assert sorted(invoice.line_ids for invoice in read_back_invoices(target)) == [("l1",), ("l2",)]


def test_a_call_that_a_finalised_invoice_refused_unseen_goes_to_the_further_one(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path
) -> None:
    """Stripe keeps the refusal under the call's key, which is good for that invoice alone."""
    warehouse.add("l1")
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, finalized_before_lines(state, crash_after(posts("/add_lines")))))
    assert sync(warehouse, target) == SyncReport(target.account_id, created=1)


def test_a_further_invoice_is_finalised_too(warehouse: Warehouse, target: StripeTarget) -> None:
    settings = InvoiceSettings(finalizes=True)
    for number, line_id in enumerate(("l1", "l2"), start=1):
        warehouse.add(line_id)
        report = sync(warehouse, target, settings=settings)
        assert (report.created, report.finalized, report.is_clean) == (1, 1, True)
        assert [invoice.status for invoice in target.client.v1.invoices.list().data] == ["open"] * number
    assert sync(warehouse, target, settings=settings) == SyncReport(target.account_id, already_confirmed=2)


def test_an_invoice_that_is_final_in_stripe_counts_as_finalised(warehouse: Warehouse, target: StripeTarget) -> None:
    """A person did it, or a sync that a restored log has forgotten."""
    settings = InvoiceSettings(finalizes=True)
    warehouse.add("l1")
    sync(warehouse, target, settings=settings)
    warehouse.connection.execute("delete from ops.stripe_sync_log where entity = 'finalization'")
    assert sync(warehouse, target, settings=settings) == SyncReport(target.account_id, already_confirmed=1)
    assert warehouse.steps("finalization", "inv_1") == ["confirmed"]


def test_a_deleted_draft_is_no_problem_of_finalising(warehouse: Warehouse, target: StripeTarget, state: Path) -> None:
    warehouse.add("l1")
    sync(warehouse, target)
    delete_drafts(state)
    settings = InvoiceSettings(finalizes=True)
    for _ in range(2):
        assert sync(warehouse, target, settings=settings) == SyncReport(target.account_id, already_confirmed=1)


@pytest.mark.parametrize("status", ["void", "deleted"])
def test_what_was_on_a_void_or_deleted_invoice_goes_again_once_the_log_has_no_rows_of_it(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path, status: str
) -> None:
    warehouse.add("l1")
    sync(warehouse, target)
    if status == "deleted":
        delete_drafts(state)
    else:
        set_invoice_status(state, status)
    warehouse.add("l2")
    assert sync(warehouse, target) == SyncReport(target.account_id, created=1, already_confirmed=1)
    warehouse.connection.execute("delete from ops.stripe_sync_log where entity_key = 'l1'")
    # What is tried from here on may be on the further invoice alone.
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_before(posts("/add_lines"))))
    assert sync(warehouse, target) == SyncReport(target.account_id, created=1, already_confirmed=1)
    further = [invoice.line_ids for invoice in read_back_invoices(target)]
    assert sorted(further) == ([("l1", "l2")] if status == "deleted" else [("l1",), ("l1", "l2")])


def test_a_line_that_nobody_can_look_for_is_not_sent_again(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path
) -> None:
    warehouse.add("l1")
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))
    delete_drafts(state)
    report = sync(warehouse, target)
    assert (report.created, report.failed) == (0, 1)
    assert "nobody knows whether it had the lines l1" in report.problems[0]
    warehouse.connection.execute("delete from ops.stripe_sync_log where entity_key = 'l1'")
    # What happens on the further invoice is looked for there.
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_after(posts("/add_lines"))))
    assert sync(warehouse, target) == SyncReport(target.account_id, confirmed_by_lookup=1)


# A warehouse restored from a backup


def test_a_log_that_is_older_than_stripe_sends_nothing_twice(
    warehouse: Warehouse, target: StripeTarget, state: Path
) -> None:
    three_invoices(warehouse)
    sync(warehouse, target)
    set_invoice_status(state, "open")
    warehouse.add("l5")
    sync(warehouse, target)
    in_stripe, logged = count_objects(target), warehouse.log()
    assert in_stripe == (2, 4, 5)
    for kept in range(len(logged)):
        warehouse.connection.execute("delete from ops.stripe_sync_log")
        marks = ", ".join("?" for _ in logged[0])
        for row in logged[:kept]:
            warehouse.connection.execute(f"insert into ops.stripe_sync_log values ({marks})", list(row))
        if kept == 0:
            forget_idempotency(state)
        report = sync(warehouse, target)
        assert (report.created, report.is_clean) == (0, True)
        assert report.confirmed_by_lookup + report.already_confirmed == 5
        assert count_objects(target) == in_stripe


def test_what_was_on_an_invoice_that_is_void_by_now_does_not_go_again(
    warehouse: Warehouse, server: LocalStripeServer, target: StripeTarget, state: Path
) -> None:
    warehouse.add("l1")
    sync(warehouse, target)
    set_invoice_status(state, "void")
    warehouse.connection.execute("delete from ops.stripe_sync_log")
    forget_idempotency(state)
    with pytest.raises(Crash):
        sync(warehouse, target_of(server, crash_before(lambda method, url, _: method == "get" and "/lines" in url)))
    assert sync(warehouse, target) == SyncReport(target.account_id, confirmed_by_lookup=1)
    assert count_objects(target) == (1, 1, 1)


@pytest.mark.parametrize("deleted", [1, 2])
def test_a_deleted_draft_of_which_the_log_knows_nothing_hides_no_later_invoice(
    warehouse: Warehouse, target: StripeTarget, state: Path, deleted: int
) -> None:
    for number, line_id in enumerate(("l1", "l2", "l3"), start=1):
        warehouse.add(line_id)
        sync(warehouse, target)
        if number == deleted:
            delete_drafts(state)
        elif number < 3:
            set_invoice_status(state, "open")
    warehouse.connection.execute("delete from ops.stripe_sync_log")
    forget_idempotency(state)
    report = sync(warehouse, target, settings=InvoiceSettings(finalizes=True))
    # Nobody can tell that Stripe had the line of the deleted draft.
    assert (report.confirmed_by_lookup, report.created, report.finalized, report.is_clean) == (2, 1, 1, True)
    read = read_back_invoices(target)
    assert sorted(line_id for invoice in read for line_id in invoice.line_ids) == ["l1", "l2", "l3"]
    assert {invoice.status for invoice in target.client.v1.invoices.list().data} == {"open"}
    assert sync(warehouse, target) == SyncReport(target.account_id, already_confirmed=3)
