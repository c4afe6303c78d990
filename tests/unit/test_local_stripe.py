"""The local Stripe server over real HTTP, through the SDK and through raw requests."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe

from orchestration.local_stripe import Fault, LocalStripeError, LocalStripeServer
from orchestration.local_stripe.control import FaultKind
from orchestration.local_stripe.parameters import nest

KEY = "sk_test_unit"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "stripe" / "state.sqlite"


@pytest.fixture
def server(state: Path) -> Iterator[LocalStripeServer]:
    with LocalStripeServer(state) as running:
        yield running


@pytest.fixture
def client(server: LocalStripeServer) -> stripe.StripeClient:
    return sdk(server)


def sdk(server: LocalStripeServer) -> stripe.StripeClient:
    session = requests.Session()
    session.trust_env = False
    return stripe.StripeClient(
        KEY, base_addresses={"api": server.url}, http_client=stripe.RequestsClient(session=session)
    )


def call(
    server: LocalStripeServer,
    method: str,
    path: str,
    form: dict[str, str] | None = None,
    *,
    key: str | None = KEY,
    headers: dict[str, str] | None = None,
) -> requests.Response:
    sent = dict(headers or {})
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    session = requests.Session()
    session.trust_env = False
    return session.request(method, server.url + path, data=form, headers=sent, timeout=20)


def new_invoice(client: stripe.StripeClient, currency: str = "usd") -> tuple[str, str]:
    customer = client.v1.customers.create({"name": "Customer"})
    invoice = client.v1.invoices.create({"customer": customer.id, "currency": currency})
    return customer.id, invoice.id


def error_of(response: requests.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    return error


# Authentication


@pytest.mark.parametrize("key", [None, "pk_test_x", "sk_live_secret", "rk_live_secret", "nonsense"])
def test_other_than_test_keys_are_refused_without_being_repeated(server: LocalStripeServer, key: str | None) -> None:
    response = call(server, "GET", "/v1/account", key=key)
    assert response.status_code == 401
    assert error_of(response)["type"] == "invalid_request_error"
    assert response.headers["Request-Id"].startswith("req_")
    assert key is None or key not in response.text
    if key is not None and "live" in key:
        assert "no live key" in error_of(response)["message"]


@pytest.mark.parametrize("key", ["sk_test_a", "rk_test_b"])
def test_any_test_key_is_accepted(server: LocalStripeServer, key: str) -> None:
    assert call(server, "GET", "/v1/account", key=key).status_code == 200


# State


def test_state_survives_a_restart_and_a_new_file_is_a_new_account(state: Path, tmp_path: Path) -> None:
    with LocalStripeServer(state) as first:
        client = sdk(first)
        account = client.v1.accounts.retrieve_current().id
        customer_id, invoice_id = new_invoice(client)
        item = client.v1.invoice_items.create(
            {"customer": customer_id, "invoice": invoice_id, "amount": 7, "currency": "usd"},
            {"idempotency_key": "kept"},
        )
    assert account.startswith("acct_local_")
    with LocalStripeServer(state) as second:
        client = sdk(second)
        assert client.v1.accounts.retrieve_current().id == account
        assert client.v1.invoices.retrieve(invoice_id).total == 7
        again = client.v1.invoice_items.create(
            {"customer": customer_id, "invoice": invoice_id, "amount": 7, "currency": "usd"},
            {"idempotency_key": "kept"},
        )
        assert again.id == item.id
    with LocalStripeServer(tmp_path / "other.sqlite") as other:
        assert sdk(other).v1.accounts.retrieve_current().id != account
        assert list(sdk(other).v1.customers.list().auto_paging_iter()) == []


def test_the_server_stops_with_its_block(state: Path) -> None:
    with LocalStripeServer(state) as server:
        assert call(server, "GET", "/v1/account").status_code == 200
    with pytest.raises(requests.ConnectionError):
        call(server, "GET", "/v1/account")


def test_a_port_in_use_is_named(server: LocalStripeServer, tmp_path: Path) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with (
        pytest.raises(LocalStripeError, match=f"127.0.0.1:{port}"),
        LocalStripeServer(tmp_path / "other.sqlite", port),
    ):
        pass


def test_a_file_that_is_no_state_file_is_named_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("something that is not a database, and long enough to be read as one" * 20)
    before = text.read_bytes()
    with pytest.raises(LocalStripeError, match=r"notes\.txt"), LocalStripeServer(text):
        pass
    assert text.read_bytes() == before
    database = tmp_path / "other.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("create table mine (id integer)")
    with pytest.raises(LocalStripeError, match="not a state file"), LocalStripeServer(database):
        pass


def test_the_module_serves_in_the_foreground(state: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestration.local_stripe", "--state", str(state)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        announced = process.stdout.readline().split()
        session = requests.Session()
        session.trust_env = False
        response = session.get(f"{announced[-1]}/v1/account", headers={"Authorization": f"Bearer {KEY}"}, timeout=20)
        assert response.json()["id"] == announced[2]
    finally:
        process.terminate()
        process.wait(20)


# Idempotency


def test_a_key_replays_its_first_answer(server: LocalStripeServer, client: stripe.StripeClient) -> None:
    headers = {"Idempotency-Key": "once"}
    first = call(server, "POST", "/v1/customers", {"name": "A"}, headers=headers)
    second = call(server, "POST", "/v1/customers", {"name": "A"}, headers=headers)
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.headers["Original-Request"] == first.headers["Request-Id"]
    assert second.headers["Request-Id"] != first.headers["Request-Id"]
    assert second.json() == first.json()
    assert len(client.v1.customers.list().data) == 1


def test_without_a_key_the_same_request_creates_two(server: LocalStripeServer) -> None:
    first = call(server, "POST", "/v1/customers", {"name": "A"})
    assert call(server, "POST", "/v1/customers", {"name": "A"}).json()["id"] != first.json()["id"]


def test_a_key_with_other_parameters_or_path_is_an_idempotency_error(client: stripe.StripeClient) -> None:
    customer = client.v1.customers.create({"name": "A"}, {"idempotency_key": "once"})
    with pytest.raises(stripe.IdempotencyError, match="same parameters") as parameters:
        client.v1.customers.create({"name": "B"}, {"idempotency_key": "once"})
    assert parameters.value.http_status == 400
    with pytest.raises(stripe.IdempotencyError, match="same endpoint"):
        client.v1.invoices.create({"customer": customer.id}, {"idempotency_key": "once"})
    assert len(client.v1.customers.list().data) == 1
    assert client.v1.invoices.list().data == []


def test_a_refusal_after_execution_began_is_replayed(
    server: LocalStripeServer, client: stripe.StripeClient, state: Path
) -> None:
    customer_id, invoice_id = new_invoice(client)
    form = {"customer": customer_id, "invoice": invoice_id, "amount": "5", "currency": "usd"}
    headers = {"Idempotency-Key": "refused"}
    set_invoice_status(state, invoice_id, "open")
    first = call(server, "POST", "/v1/invoiceitems", form, headers=headers)
    set_invoice_status(state, invoice_id, "draft")
    second = call(server, "POST", "/v1/invoiceitems", form, headers=headers)
    assert (first.status_code, second.status_code) == (400, 400)
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.json() == first.json()
    assert client.v1.invoice_items.list().data == []


def test_a_request_that_fails_validation_leaves_its_key_unused(server: LocalStripeServer) -> None:
    headers = {"Idempotency-Key": "again"}
    wrong = call(server, "POST", "/v1/customers", {"nome": "A"}, headers=headers)
    right = call(server, "POST", "/v1/customers", {"name": "A"}, headers=headers)
    assert (wrong.status_code, right.status_code) == (400, 200)
    assert "Idempotent-Replayed" not in right.headers


def test_a_key_is_forgotten_after_a_day(client: stripe.StripeClient, state: Path) -> None:
    first = client.v1.customers.create({"name": "A"}, {"idempotency_key": "old"})
    with sqlite3.connect(state) as connection:
        connection.execute("update idempotency_records set created = created - 86500")
    second = client.v1.customers.create({"name": "A"}, {"idempotency_key": "old"})
    assert second.id != first.id


def test_a_key_has_at_most_255_characters(server: LocalStripeServer) -> None:
    long, longest = ({"Idempotency-Key": "k" * length} for length in (256, 255))
    assert call(server, "POST", "/v1/customers", {}, headers=long).status_code == 400
    assert call(server, "POST", "/v1/customers", {}, headers=longest).status_code == 200


# Parameters and errors


@pytest.mark.parametrize(
    ("path", "form", "code", "param"),
    [
        ("/v1/customers", {"nome": "A"}, "parameter_unknown", "nome"),
        ("/v1/customers", {"name": ""}, "parameter_invalid_empty", "name"),
        ("/v1/customers", {"expand[]": "sources"}, None, "expand"),
        ("/v1/customers", {"metadata[a]": "x" * 501}, None, "metadata[a]"),
        ("/v1/customers", {f"metadata[{'k' * 41}]": "x"}, None, f"metadata[{'k' * 41}]"),
        ("/v1/customers", {f"metadata[k{number}]": "x" for number in range(51)}, None, "metadata"),
        ("/v1/invoices", {}, "parameter_missing", "customer"),
        ("/v1/invoices", {"customer": "cus_none"}, "resource_missing", "customer"),
        ("/v1/invoices", {"customer": "CUS", "auto_advance": "yes"}, None, "auto_advance"),
        ("/v1/invoices", {"customer": "CUS", "collection_method": "send_invoice"}, None, "days_until_due"),
        ("/v1/invoices", {"customer": "CUS", "pending_invoice_items_behavior": "all"}, None, None),
        ("/v1/invoiceitems", {"customer": "CUS", "currency": "usd"}, "parameter_missing", "amount"),
        ("/v1/invoiceitems", {"customer": "CUS", "amount": "1"}, "parameter_missing", "currency"),
        ("/v1/invoiceitems", {"amount": "1", "currency": "usd"}, "parameter_missing", "customer"),
        (
            "/v1/invoiceitems",
            {"customer": "CUS", "amount": "1.5", "currency": "usd"},
            "parameter_invalid_integer",
            "amount",
        ),
        ("/v1/invoiceitems", {"customer": "CUS", "amount": "1", "currency": "dollars"}, None, "currency"),
        (
            "/v1/invoiceitems",
            {"customer": "CUS", "amount": "1", "currency": "usd", "invoice": "in_none"},
            "resource_missing",
            "invoice",
        ),
        (
            "/v1/invoiceitems",
            {"customer": "CUS", "amount": "1", "currency": "usd", "period[start]": "5"},
            "parameter_missing",
            "period[end]",
        ),
        (
            "/v1/invoiceitems",
            {"customer": "CUS", "amount": "1", "currency": "usd", "period[start]": "5", "period[end]": "4"},
            None,
            "period",
        ),
        (
            "/v1/invoiceitems",
            {"customer": "CUS", "amount": "1", "currency": "usd", "period[begin]": "5"},
            "parameter_unknown",
            "period[begin]",
        ),
        (
            "/v1/invoiceitems",
            {"customer": "CUS", "amount": "1", "currency": "usd", "unit_amount_decimal": "1"},
            None,
            "unit_amount_decimal",
        ),
    ],
)
def test_wrong_parameters_are_refused(
    server: LocalStripeServer,
    client: stripe.StripeClient,
    path: str,
    form: dict[str, str],
    code: str | None,
    param: str | None,
) -> None:
    customer_id = client.v1.customers.create({}).id
    sent = {name: customer_id if value == "CUS" else value for name, value in form.items()}
    response = call(server, "POST", path, sent)
    error = error_of(response)
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error.get("code") == code
    if param is not None:
        assert error["param"] == param
    assert ("doc_url" in error) == (code is not None)
    assert len(client.v1.customers.list().data) == 1
    assert client.v1.invoice_items.list().data == []
    assert client.v1.invoices.list().data == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/charges"),
        ("GET", "/"),
        ("DELETE", "/v1/customers/cus_1"),
        ("POST", "/v1/customers/cus_1"),
    ],
)
def test_what_the_server_does_not_have_is_a_404(server: LocalStripeServer, method: str, path: str) -> None:
    response = call(server, method, path)
    assert response.status_code == 404
    assert error_of(response)["type"] == "invalid_request_error"
    assert response.headers["Request-Id"].startswith("req_")


@pytest.mark.parametrize("path", ["/v1/customers/no", "/v1/invoices/no", "/v1/invoiceitems/no"])
def test_a_missing_object_is_a_404(server: LocalStripeServer, path: str) -> None:
    response = call(server, "GET", path)
    assert response.status_code == 404
    assert error_of(response)["code"] == "resource_missing"


def test_the_version_is_echoed(server: LocalStripeServer) -> None:
    response = call(server, "GET", "/v1/account", headers={"Stripe-Version": "2020-08-27"})
    assert response.headers["Stripe-Version"] == "2020-08-27"


def test_a_json_body_is_refused(server: LocalStripeServer) -> None:
    response = requests.post(
        f"{server.url}/v1/customers",
        json={"name": "A"},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=20,
        proxies={"http": ""},
    )
    assert response.status_code == 400
    assert "application/json" in error_of(response)["message"]


def test_brackets_nest() -> None:
    assert nest([("a[b][c]", "1"), ("a[b][d]", "2"), ("e[]", "3"), ("e[]", "4"), ("f", "")]) == {
        "a": {"b": {"c": "1", "d": "2"}},
        "e": {"0": "3", "1": "4"},
        "f": "",
    }


# Objects


def test_a_customer_comes_back_as_it_was_created(client: stripe.StripeClient) -> None:
    created = client.v1.customers.create(
        {"name": "Zoë & Söhne", "email": "a@example.com", "metadata": {"k": "v=&1", "empty": ""}}
    )
    read = client.v1.customers.retrieve(created.id)
    assert (read.object, read.name, read.email, read.livemode) == (
        "customer",
        "Zoë & Söhne",
        "a@example.com",
        False,
    )
    assert read.metadata is not None
    assert read.metadata.to_dict() == {"k": "v=&1"}
    assert read.created > 1_700_000_000


def test_totals_are_the_sum_of_the_attached_items(client: stripe.StripeClient) -> None:
    customer_id, invoice_id = new_invoice(client)
    for amount in (1000, 250, -300):
        client.v1.invoice_items.create(
            {"customer": customer_id, "invoice": invoice_id, "amount": amount, "currency": "usd"}
        )
    client.v1.invoice_items.create({"customer": customer_id, "amount": 9999, "currency": "usd"})
    invoice = client.v1.invoices.retrieve(invoice_id)
    assert (invoice.subtotal, invoice.total, invoice.amount_due) == (950, 950, 950)
    assert (invoice.status, invoice.auto_advance, invoice.currency) == ("draft", False, "usd")
    client.v1.invoice_items.create({"customer": customer_id, "invoice": invoice_id, "amount": -1000, "currency": "usd"})
    invoice = client.v1.invoices.retrieve(invoice_id)
    assert (invoice.total, invoice.amount_due) == (-50, 0)


def test_pending_items_join_an_invoice_only_when_included(client: stripe.StripeClient) -> None:
    customer_id = client.v1.customers.create({}).id
    other_id = client.v1.customers.create({}).id
    for owner, amount, currency in ((customer_id, 5, "usd"), (customer_id, 7, "eur"), (other_id, 9, "usd")):
        client.v1.invoice_items.create({"customer": owner, "amount": amount, "currency": currency})
    excluded = client.v1.invoices.create({"customer": customer_id, "currency": "usd"})
    included = client.v1.invoices.create(
        {"customer": customer_id, "currency": "usd", "pending_invoice_items_behavior": "include"}
    )
    assert (excluded.total, included.total) == (0, 5)
    pending = client.v1.invoice_items.list({"pending": True})
    assert sorted(item.amount for item in pending.data) == [7, 9]


def test_an_item_keeps_its_period_and_metadata(client: stripe.StripeClient) -> None:
    customer_id, invoice_id = new_invoice(client)
    created = client.v1.invoice_items.create(
        {
            "customer": customer_id,
            "invoice": invoice_id,
            "amount": 12,
            "currency": "USD",
            "description": "Calls",
            "discountable": False,
            "period": {"start": 100, "end": 200},
            "metadata": {"line": "l1"},
        }
    )
    item = client.v1.invoice_items.retrieve(created.id)
    assert (item.object, item.amount, item.currency, item.invoice) == ("invoiceitem", 12, "usd", invoice_id)
    assert (item.period.start, item.period.end, item.discountable) == (100, 200, False)
    assert item.metadata is not None
    assert item.metadata.to_dict() == {"line": "l1"}


def test_an_invoice_takes_items_only_of_its_customer_and_currency_while_a_draft(
    client: stripe.StripeClient, state: Path
) -> None:
    customer_id, invoice_id = new_invoice(client)
    other_id = client.v1.customers.create({}).id
    with pytest.raises(stripe.InvalidRequestError, match="belongs to customer"):
        client.v1.invoice_items.create({"customer": other_id, "invoice": invoice_id, "amount": 1, "currency": "usd"})
    with pytest.raises(stripe.InvalidRequestError, match="is in usd"):
        client.v1.invoice_items.create({"customer": customer_id, "invoice": invoice_id, "amount": 1, "currency": "eur"})
    set_invoice_status(state, invoice_id, "open")
    with pytest.raises(stripe.InvalidRequestError, match="status open"):
        client.v1.invoice_items.create({"customer": customer_id, "invoice": invoice_id, "amount": 1, "currency": "usd"})
    assert client.v1.invoice_items.list().data == []


def test_an_invoice_takes_250_items(client: stripe.StripeClient) -> None:
    customer_id, invoice_id = new_invoice(client)
    for _ in range(250):
        client.v1.invoice_items.create({"customer": customer_id, "invoice": invoice_id, "amount": 1, "currency": "usd"})
    with pytest.raises(stripe.InvalidRequestError, match="250 items"):
        client.v1.invoice_items.create({"customer": customer_id, "invoice": invoice_id, "amount": 1, "currency": "usd"})
    assert client.v1.invoices.retrieve(invoice_id).total == 250


# Lists


def test_lists_are_newest_first_and_page_by_ten(client: stripe.StripeClient) -> None:
    created = [client.v1.customers.create({"name": str(number)}).id for number in range(23)]
    first = client.v1.customers.list()
    assert (len(first.data), first.has_more) == (10, True)
    assert [customer.id for customer in first.data] == created[:12:-1]
    last = client.v1.customers.list({"limit": 3, "starting_after": created[3]})
    assert ([customer.id for customer in last.data], last.has_more) == (created[2::-1], False)
    every = client.v1.customers.list({"limit": 4}).auto_paging_iter()
    assert [customer.id for customer in every] == created[::-1]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "starting_after=cus_none", "page=2"])
def test_wrong_list_parameters_are_refused(server: LocalStripeServer, query: str) -> None:
    assert call(server, "GET", f"/v1/customers?{query}").status_code == 400


def test_lists_filter(client: stripe.StripeClient, state: Path) -> None:
    (first, first_invoice), (second, second_invoice) = new_invoice(client), new_invoice(client)
    for customer_id, invoice_id, amount in ((first, first_invoice, 1), (second, second_invoice, 2)):
        client.v1.invoice_items.create(
            {"customer": customer_id, "invoice": invoice_id, "amount": amount, "currency": "usd"}
        )
    assert [item.amount for item in client.v1.invoice_items.list({"customer": second}).data] == [2]
    assert [item.amount for item in client.v1.invoice_items.list({"invoice": first_invoice}).data] == [1]
    assert [invoice.id for invoice in client.v1.invoices.list({"customer": first}).data] == [first_invoice]
    set_invoice_status(state, first_invoice, "open")
    assert [invoice.id for invoice in client.v1.invoices.list({"status": "draft"}).data] == [second_invoice]
    assert [invoice.id for invoice in client.v1.invoices.list({"status": "open"}).data] == [first_invoice]
    with sqlite3.connect(state) as connection:
        connection.execute("update objects set created = 1000 where id = ?", (first_invoice,))
    old = client.v1.invoices.list({"created": {"gte": 1000, "lt": 1001}})
    new = client.v1.invoices.list({"created": {"gt": 1000}})
    assert [invoice.id for invoice in old.data] == [first_invoice]
    assert [invoice.id for invoice in new.data] == [second_invoice]


# Finalising and deleting


def test_finalising_opens_an_invoice_and_closes_it_to_changes(client: stripe.StripeClient) -> None:
    customer_id, invoice_id = new_invoice(client)
    item = client.v1.invoice_items.create(
        {"customer": customer_id, "invoice": invoice_id, "amount": 7, "currency": "usd"}
    )
    assert client.v1.invoices.finalize_invoice(invoice_id, {"auto_advance": False}).status == "open"
    for change in (
        lambda: client.v1.invoices.finalize_invoice(invoice_id),
        lambda: client.v1.invoice_items.delete(item.id),
    ):
        with pytest.raises(stripe.InvalidRequestError, match="status open") as caught:
            change()
        assert caught.value.code == "invoice_not_editable"
    assert client.v1.invoices.retrieve(invoice_id).total == 7


def test_nothing_due_is_paid_when_finalised(client: stripe.StripeClient) -> None:
    _, invoice_id = new_invoice(client)
    assert client.v1.invoices.finalize_invoice(invoice_id).status == "paid"


def test_an_item_of_a_draft_is_deleted(client: stripe.StripeClient) -> None:
    customer_id, invoice_id = new_invoice(client)
    item = client.v1.invoice_items.create(
        {"customer": customer_id, "invoice": invoice_id, "amount": 7, "currency": "usd"}
    )
    assert client.v1.invoice_items.delete(item.id).deleted
    assert client.v1.invoices.retrieve(invoice_id).total == 0
    with pytest.raises(stripe.InvalidRequestError, match="No such invoiceitem"):
        client.v1.invoice_items.delete(item.id)


# Test control


@pytest.mark.parametrize(
    ("kind", "error", "status", "created"),
    [
        ("error_before", stripe.APIError, 500, 0),
        ("error_after", stripe.APIError, 500, 1),
        ("error_stored", stripe.APIError, 500, 1),
        ("drop_before", stripe.APIConnectionError, None, 0),
        ("drop_after", stripe.APIConnectionError, None, 1),
        ("hang_before", stripe.APIConnectionError, None, 0),
        ("hang_after", stripe.APIConnectionError, None, 1),
        ("conflict", stripe.APIError, 409, 0),
        ("rate_limit", stripe.RateLimitError, 429, 0),
    ],
)
def test_faults_happen_to_the_chosen_request_before_or_after_its_effect(
    server: LocalStripeServer,
    client: stripe.StripeClient,
    kind: FaultKind,
    error: type[stripe.StripeError],
    status: int | None,
    created: int,
) -> None:
    server.control.add(Fault(kind, "POST", "/v1/customers", skip=1, seconds=0.25))
    client.v1.customers.create({"name": "before"})
    client.v1.customers.list()
    with pytest.raises(error) as caught:
        client.v1.customers.create({"name": "fails"}, {"idempotency_key": "k"})
    assert caught.value.http_status == status
    assert server.control.injected == (kind,)
    assert len(client.v1.customers.list().data) == 1 + created
    if kind == "rate_limit":
        assert (caught.value.headers or {})["Retry-After"] == "0.25"
    if kind == "error_stored":
        with pytest.raises(stripe.APIError) as replayed:
            client.v1.customers.create({"name": "fails"}, {"idempotency_key": "k"})
        assert (replayed.value.headers or {})["Idempotent-Replayed"] == "true"
    else:
        client.v1.customers.create({"name": "fails"}, {"idempotency_key": "k"})
    # Tried again under its key, it is there once whatever happened before.
    assert len(client.v1.customers.list().data) == 2


def test_a_slow_answer_comes(server: LocalStripeServer, client: stripe.StripeClient) -> None:
    server.control.add(Fault("slow", seconds=0.2))
    started = time.monotonic()
    client.v1.customers.list()
    assert time.monotonic() - started >= 0.2


def test_a_key_is_forgotten_when_the_clock_is_moved(server: LocalStripeServer, client: stripe.StripeClient) -> None:
    def create() -> stripe.Customer:
        return client.v1.customers.create({"name": "A"}, {"idempotency_key": "old"})

    first = create()
    server.control.advance(23.9 * 3600)
    assert create().id == first.id
    server.control.advance(0.2 * 3600)
    second = create()
    assert second.id != first.id
    assert second.created - first.created >= 24 * 3600


def test_the_rate_is_limited_by_the_second(server: LocalStripeServer, client: stripe.StripeClient) -> None:
    server.control.requests_per_second = 2
    for _ in range(2):
        client.v1.customers.list()
    with pytest.raises(stripe.RateLimitError) as caught:
        client.v1.customers.list()
    assert error_body(caught.value)["code"] == "rate_limit"
    server.control.clear()
    client.v1.customers.list()


def test_the_control_is_reached_over_http(server: LocalStripeServer, client: stripe.StripeClient) -> None:
    def control(form: dict[str, str]) -> requests.Response:
        return requests.post(f"{server.url}/test_control", data=form, timeout=20, proxies={"http": ""})

    before = server.control.now()
    control({"advance_seconds": "90000", "kind": "error_before", "path": "/v1/customers", "times": "2"})
    for _ in range(2):
        with pytest.raises(stripe.APIError):
            client.v1.customers.list()
    answer = control({}).json()
    assert answer["injected"] == ["error_before"] * 2
    assert answer["now"] - before >= 90000
    for wrong in ({"kind": "explode"}, {"times": "2"}, {"advance_seconds": "soon"}):
        assert control(wrong).status_code == 400


def error_body(error: stripe.StripeError) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(str(error.http_body))["error"]
    return body


def set_invoice_status(state: Path, invoice_id: str, status: str) -> None:
    """Any status, also those that nothing in the server leads to."""
    with sqlite3.connect(state) as connection:
        connection.execute("update objects set status = ? where id = ?", (status, invoice_id))


# Lines added in one call


def add_lines(server: LocalStripeServer, invoice_id: str, form: dict[str, str]) -> requests.Response:
    return call(server, "POST", f"/v1/invoices/{invoice_id}/add_lines", form)


def test_lines_are_added_in_one_call(client: stripe.StripeClient) -> None:
    _, invoice_id = new_invoice(client)
    product = client.v1.products.create({"id": "prod_calls", "name": "Calls"})
    answer = client.v1.invoices.add_lines(
        invoice_id,
        {
            "lines": [
                {"amount": -5, "description": "credit", "metadata": {"n": "0"}, "period": {"start": 1, "end": 2}},
                {
                    "metadata": {"n": "1"},
                    "quantity_decimal": Decimal("2.5"),
                    "price_data": {
                        "currency": "usd",
                        "product": product.id,
                        "unit_amount_decimal": Decimal("0.4"),
                    },
                },
                *({"amount": 1, "metadata": {"n": str(number)}} for number in range(2, 12)),
            ]
        },
    )
    assert (answer.id, answer.total, len(answer.lines.data), answer.lines.has_more) == (invoice_id, 6, 10, True)
    listed = client.v1.invoices.line_items.list(invoice_id, {"limit": 5})
    lines = list(listed.auto_paging_iter())
    assert [line.metadata["n"] for line in lines] == [str(number) for number in range(12)]
    credit, usage = lines[:2]
    assert (credit.amount, credit.description, credit.period.start, credit.period.end) == (-5, "credit", 1, 2)
    assert usage.pricing is not None
    assert (usage.amount, usage.quantity_decimal, usage.pricing.unit_amount_decimal) == (
        1,
        Decimal("2.5"),
        Decimal("0.4"),
    )
    # Stripe says that a line is backed by an invoice item, and not that the item has the line's metadata.
    assert usage.parent is not None
    assert usage.parent.invoice_item_details is not None
    item = client.v1.invoice_items.retrieve(usage.parent.invoice_item_details.invoice_item)
    assert item.metadata is not None
    assert (item.amount, item.invoice, item.metadata.to_dict()) == (1, invoice_id, {})


@pytest.mark.parametrize(
    ("form", "param", "code"),
    [
        ({}, "lines", "parameter_missing"),
        ({"lines": "1"}, "lines", None),
        ({"lines[0]": "1"}, "lines[0]", None),
        ({"lines[0][nope]": "1"}, "lines[0][nope]", "parameter_unknown"),
        ({"lines[0][amount]": "1.5"}, "lines[0][amount]", "parameter_invalid_integer"),
        ({"lines[0][description]": "no amount"}, "lines[0][amount]", None),
        ({"lines[0][amount]": "1", "lines[0][quantity_decimal]": "2"}, "lines[0][quantity_decimal]", None),
        ({"lines[0][tax_rates][0]": "txr_1", "lines[0][amount]": "1"}, "lines[0][tax_rates]", None),
        ({"lines[0][price_data]": "1"}, "lines[0][price_data]", None),
        ({"lines[0][price_data][currency]": "usd"}, "lines[0][price_data][product]", "parameter_missing"),
        (
            {"lines[0][price_data][currency]": "usd", "lines[0][price_data][unit_amount_decimal]": "-1"},
            "lines[0][price_data][product]",
            "parameter_missing",
        ),
        (
            {
                "lines[0][price_data][currency]": "usd",
                "lines[0][price_data][product]": "prod_1",
                "lines[0][price_data][unit_amount_decimal]": "0.1234567890123",
            },
            "lines[0][price_data][unit_amount_decimal]",
            "parameter_invalid_decimal",
        ),
        (
            {
                "lines[0][price_data][currency]": "usd",
                "lines[0][price_data][product]": "prod_unknown",
                "lines[0][price_data][unit_amount_decimal]": "1",
            },
            "lines[0][price_data][product]",
            "resource_missing",
        ),
        (
            {
                "lines[0][price_data][currency]": "eur",
                "lines[0][price_data][product]": "prod_1",
                "lines[0][price_data][unit_amount_decimal]": "1",
            },
            "lines[0][price_data][currency]",
            None,
        ),
        ({f"lines[{number}][amount]": "1" for number in range(251)}, "lines", None),
    ],
)
def test_lines_are_refused_together_and_the_fault_is_named(
    server: LocalStripeServer, client: stripe.StripeClient, form: dict[str, str], param: str, code: str | None
) -> None:
    _, invoice_id = new_invoice(client)
    client.v1.products.create({"id": "prod_1", "name": "Calls"})
    response = add_lines(server, invoice_id, {"lines[1][amount]": "1"} | form if "lines[0][amount]" in form else form)
    assert response.status_code == 400
    assert (error_of(response).get("param"), error_of(response).get("code")) == (param, code)
    assert client.v1.invoices.retrieve(invoice_id).total == 0


def test_only_a_draft_that_is_there_takes_lines(server: LocalStripeServer, client: stripe.StripeClient) -> None:
    _, invoice_id = new_invoice(client)
    client.v1.invoices.finalize_invoice(invoice_id)
    response = add_lines(server, invoice_id, {"lines[0][amount]": "1"})
    assert (response.status_code, error_of(response)["code"]) == (400, "invoice_not_editable")
    for response in (
        add_lines(server, "in_unknown", {"lines[0][amount]": "1"}),
        call(server, "GET", "/v1/invoices/in_unknown/lines"),
    ):
        assert (response.status_code, error_of(response)["code"]) == (404, "resource_missing")
    response = call(server, "GET", f"/v1/invoices/{invoice_id}/lines?starting_after=il_unknown")
    assert (response.status_code, error_of(response)["param"]) == (400, "starting_after")


def test_the_id_of_a_product_is_taken_once(server: LocalStripeServer, client: stripe.StripeClient) -> None:
    product = client.v1.products.create({"id": "prod_1", "name": "Calls", "metadata": {"a": "b"}})
    assert client.v1.products.retrieve("prod_1").name == product.name == "Calls"
    response = call(server, "POST", "/v1/products", {"id": "prod_1", "name": "Again"})
    assert (response.status_code, error_of(response)["code"]) == (400, "resource_already_exists")
    assert [found.id for found in client.v1.products.list().data] == ["prod_1"]
