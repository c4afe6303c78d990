"""What the endpoints do: customers, products, invoices and items, created, retrieved, listed, finalised, deleted."""

from __future__ import annotations

import hashlib
import json
import secrets
import string
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from typing import Any

from .control import server_failed
from .errors import ApiError, missing_object
from .meter_stream import MeterStream
from .meters import Meters
from .parameters import ADD_LINES, CREATE, FINALIZE_INVOICE, LIST, LIST_LINES, RETRIEVE, RETRIEVE_ACCOUNT
from .store import IdempotencyRecord, Store, StoredObject

# Path segment and kind of each collection (the kind is also Stripe's `object` member).
COLLECTIONS = {"customers": "customer", "invoices": "invoice", "invoiceitems": "invoiceitem", "products": "product"}

# Stripe API reference, "Create an invoice item": "there is a maximum of 250 items per invoice".
ITEMS_PER_INVOICE = 250
# An invoice shows the first of its lines; the rest are at its own URL.
LINES_SHOWN = 10

# Stripe API reference, "Idempotent requests": keys may be removed once they are at least 24 hours old.
IDEMPOTENCY_SECONDS = 24 * 60 * 60
# As above: "Idempotency keys are up to 255 characters long".
IDEMPOTENCY_KEY_CHARACTERS = 255

SECONDS_PER_DAY = 24 * 60 * 60
ID_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: status, JSON text, and headers beyond those that every answer has."""

    status: int
    body: str
    headers: Mapping[str, str]


def new_id(prefix: str, characters: int) -> str:
    """A random id such as `in_` and 24 letters and digits."""
    return f"{prefix}_" + "".join(secrets.choice(ID_ALPHABET) for _ in range(characters))


class Api:
    """Stripe's endpoints over a `Store`.

    Args:
        store: the state.
        clock: gives the present in seconds since 1970 UTC.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._meters = Meters(store, clock, new_id)
        self._meter_stream = MeterStream(store, clock, new_id, self._meters)

    def get(self, path: str, pairs: list[tuple[str, str]]) -> Answer:
        """Answer a GET.

        Args:
            path: such as `/v1/invoices` or `/v1/invoices/in_1`.
            pairs: decoded query parameters.

        Raises:
            ApiError: an unknown path or object, or a wrong parameter.
        """
        if path == "/v1/account":
            RETRIEVE_ACCOUNT.read(pairs)
            return _success({"id": self._store.account_id(), "object": "account"})
        if path.startswith("/v1/invoices/") and path.endswith("/lines"):
            return self._list_lines(path, path.split("/")[3], LIST_LINES.read(pairs))
        of_meters = self._meters.get(path, pairs)
        if of_meters is not None:
            return _success(of_meters)
        collection, object_id = _split("GET", path)
        kind = COLLECTIONS[collection]
        if object_id is None:
            return self._list(path, kind, LIST[kind].read(pairs))
        RETRIEVE[kind].read(pairs)
        stored = self._store.get(kind, object_id)
        if stored is None:
            raise missing_object(kind, object_id, param="id", in_path=True)
        return _success(self._render(stored))

    def post(
        self,
        path: str,
        pairs: list[tuple[str, str]],
        idempotency_key: str | None,
        request_id: str,
        *,
        fails_afterwards: bool = False,
    ) -> Answer:
        """Answer a POST, and keep the answer under its idempotency key in the transaction of the object.

        Parameters are checked first: a request that fails there keeps its key unused. Afterwards every
        outcome, also a refusal, is what the key replays (Stripe API reference, "Idempotent requests").

        Args:
            path: such as `/v1/invoices` or `/v1/invoices/in_1/finalize`.
            pairs: decoded form parameters.
            idempotency_key: the header's value, or None.
            request_id: the id given to this request.
            fails_afterwards: for tests: what is asked is done, and the answer, also the stored one, is a 500.

        Raises:
            ApiError: an unknown path, a wrong parameter, or a key used before for another request.
        """
        if idempotency_key is not None and len(idempotency_key) > IDEMPOTENCY_KEY_CHARACTERS:
            raise ApiError(400, f"Idempotency-Key has {len(idempotency_key)} characters, at most 255 are allowed.")
        action = self._action(path, pairs)
        with self._store.transaction():
            if idempotency_key is None:
                return action()
            now = int(self._clock())
            not_before = now - IDEMPOTENCY_SECONDS
            fingerprint = hashlib.sha256(json.dumps(sorted(pairs)).encode()).hexdigest()
            record = self._store.find_record(idempotency_key, not_before=not_before)
            if record is not None:
                return _replay(record, path, fingerprint)
            try:
                answer = action()
            except ApiError as error:
                answer = Answer(error.status, error.body(), {})
            if fails_afterwards:
                failure = server_failed()
                answer = Answer(failure.status, failure.body(), {})
            self._store.save_record(
                IdempotencyRecord(idempotency_key, path, fingerprint, answer.status, answer.body, request_id, now),
                not_before=not_before,
            )
            return answer

    def post_json(self, path: str, text: str, token: str, *, fails_afterwards: bool = False) -> Answer:
        """Answer a POST of the v2 API, which keeps no answer under an idempotency key here.

        Args:
            path: such as `/v2/billing/meter_event_session`.
            text: the body, a JSON object.
            token: what the request was authenticated with.
            fails_afterwards: for tests: what is asked is done, and the answer is a 500.

        Raises:
            ApiError: an unknown path, a wrong parameter, or a session that is not valid.
        """
        with self._store.transaction():
            answer = self._meter_stream.post(path, text, token)
        if answer is None:
            raise unrecognized("POST", path)
        if fails_afterwards:
            raise server_failed()
        return _success(answer)

    def delete(self, path: str) -> Answer:
        """Delete an invoice item that is on no invoice, or on a draft.

        Raises:
            ApiError: an unknown path or object, or the invoice is no draft any more.
        """
        collection, object_id = _split("DELETE", path)
        if collection != "invoiceitems" or object_id is None:
            raise unrecognized("DELETE", path)
        with self._store.transaction():
            item = self._store.get("invoiceitem", object_id)
            if item is None:
                raise missing_object("invoiceitem", object_id, param="id", in_path=True)
            invoice = None if item.invoice is None else self._store.get("invoice", item.invoice)
            if invoice is not None and invoice.status != "draft":
                raise _not_editable(invoice)
            self._store.delete(object_id)
        return _success({"id": object_id, "object": "invoiceitem", "deleted": True})

    def _action(self, path: str, pairs: list[tuple[str, str]]) -> Callable[[], Answer]:
        """What a POST asks for, its parameters read."""
        of_meters = self._meters.action(path, pairs)
        if of_meters is not None:
            return lambda: _success(of_meters())
        for suffix in ("/finalize", "/add_lines"):
            if not path.endswith(suffix):
                continue
            collection, object_id = _split("POST", path.removesuffix(suffix))
            if collection != "invoices" or object_id is None:
                continue
            if suffix == "/add_lines":
                return partial(self._add_lines, object_id, ADD_LINES.read(pairs)["lines"])
            FINALIZE_INVOICE.read(pairs)
            return partial(self._finalize, object_id)
        collection, object_id = _split("POST", path)
        if object_id is not None:
            raise ApiError(
                404,
                f"The local Stripe server cannot update objects (POST: {path}). Use a Stripe test key.",
            )
        kind = COLLECTIONS[collection]
        parameters = CREATE[kind].read(pairs)
        if kind == "invoice":
            _check_collection(parameters)
        return lambda: self._create(kind, parameters)

    def _finalize(self, invoice_id: str) -> Answer:
        """A draft becomes open, or paid where nothing is due (Stripe docs, "Status transitions and finalization")."""
        invoice = self._store.get("invoice", invoice_id)
        if invoice is None:
            raise missing_object("invoice", invoice_id, param="id", in_path=True)
        if invoice.status != "draft":
            raise _not_editable(invoice)
        due = sum(item.body["amount"] for item in self._store.invoice_items(invoice_id))
        self._store.set_status(invoice_id, "open" if due > 0 else "paid")
        return _success(self._render(replace(invoice, status="open" if due > 0 else "paid")))

    def _add_lines(self, invoice_id: str, lines: list[dict[str, Any]]) -> Answer:
        """All of the lines become items of a draft, or none."""
        invoice = self._store.get("invoice", invoice_id)
        if invoice is None:
            raise missing_object("invoice", invoice_id, param="invoice", in_path=True)
        if invoice.status != "draft":
            raise _not_editable(invoice)
        present = len(self._store.invoice_items(invoice_id))
        if present + len(lines) > ITEMS_PER_INVOICE:
            raise ApiError(
                400,
                f"Invoice {invoice_id} has {present} items and would have {present + len(lines)}, "
                f"the maximum is {ITEMS_PER_INVOICE}.",
                param="lines",
            )
        now, currency = int(self._clock()), invoice.body["currency"]
        bodies = []
        for index, line in enumerate(lines):
            price = (
                self._line_price(f"lines[{index}][price_data]", line["price_data"], currency, line)
                if ("price_data" in line)
                else {"amount": line["amount"]}
            )
            bodies.append(_item_body(line | price, currency, now) | {"is_line": True})
        for body in bodies:
            self._store.insert(
                StoredObject("invoiceitem", new_id("ii", 24), invoice.customer, invoice_id, None, now, body)
            )
        return _success(self._render(invoice))

    def _line_price(self, where: str, price: dict[str, Any], currency: str, line: dict[str, Any]) -> dict[str, Any]:
        """Amount, quantity and unit amount of a line with a price."""
        if self._store.get("product", price["product"]) is None:
            raise missing_object("product", price["product"], param=f"{where}[product]")
        if price["currency"] != currency:
            raise ApiError(
                400,
                f"The invoice is in {currency}, the price in {price['currency']}.",
                param=f"{where}[currency]",
            )
        quantity, unit_amount = line.get("quantity_decimal", Decimal(1)), price["unit_amount_decimal"]
        return {
            "amount": int((quantity * unit_amount).quantize(Decimal(1), ROUND_HALF_UP)),
            "quantity_decimal": f"{quantity:f}",
            "unit_amount_decimal": f"{unit_amount:f}",
            "product": price["product"],
        }

    def _list_lines(self, path: str, invoice_id: str, parameters: dict[str, Any]) -> Answer:
        """The items of an invoice as its lines, oldest first."""
        if self._store.get("invoice", invoice_id) is None:
            raise missing_object("invoice", invoice_id, param="invoice", in_path=True)
        lines = [_render_line(item) for item in self._store.invoice_items(invoice_id)]
        after = parameters.get("starting_after")
        if after is not None:
            ids = [line["id"] for line in lines]
            if after not in ids:
                raise missing_object("line_item", after, param="starting_after")
            lines = lines[ids.index(after) + 1 :]
        return _success(_first_lines(path, lines, parameters.get("limit", 10)))

    def _list(self, path: str, kind: str, parameters: dict[str, Any]) -> Answer:
        after = parameters.get("starting_after")
        if after is not None and self._store.get(kind, after) is None:
            raise missing_object(kind, after, param="starting_after")
        for owner in ("customer", "invoice"):
            if owner in parameters and self._store.get(owner, parameters[owner]) is None:
                raise missing_object(owner, parameters[owner], param=owner)
        rows, has_more = self._store.page(
            kind,
            equal={name: parameters[name] for name in ("customer", "invoice", "status") if name in parameters},
            pending=parameters.get("pending"),
            created=parameters.get("created", {}),
            after=after,
            limit=parameters.get("limit", 10),
        )
        return _success(
            {"object": "list", "url": path, "has_more": has_more, "data": [self._render(row) for row in rows]}
        )

    def _create(self, kind: str, parameters: dict[str, Any]) -> Answer:
        """Check against the state, then write: an `ApiError` leaves nothing behind."""
        create = {
            "customer": self._create_customer,
            "invoice": self._create_invoice,
            "invoiceitem": self._create_invoice_item,
            "product": self._create_product,
        }[kind]
        return _success(self._render(create(parameters, int(self._clock()))))

    def _create_customer(self, parameters: dict[str, Any], now: int) -> StoredObject:
        body = {name: parameters.get(name) for name in ("name", "email", "phone", "description")}
        body |= {
            "metadata": parameters.get("metadata", {}),
            "balance": 0,
            "currency": None,
            "delinquent": False,
        }
        customer = StoredObject("customer", new_id("cus", 14), None, None, None, now, body)
        self._store.insert(customer)
        return customer

    def _create_invoice(self, parameters: dict[str, Any], now: int) -> StoredObject:
        customer = self._require_customer(parameters["customer"])
        currency = parameters.get("currency", "usd")
        pending = []
        if parameters.get("pending_invoice_items_behavior") == "include":
            pending = self._store.pending_items(customer.id, currency)[:ITEMS_PER_INVOICE]
        due = parameters.get("days_until_due")
        body = {
            "currency": currency,
            "auto_advance": parameters.get("auto_advance", False),
            "automatic_tax": {"enabled": parameters.get("automatic_tax", False), "status": None},
            "collection_method": parameters.get("collection_method", "charge_automatically"),
            "due_date": None if due is None else now + due * SECONDS_PER_DAY,
            "description": parameters.get("description"),
            "metadata": parameters.get("metadata", {}),
            "customer_name": customer.body["name"],
            "customer_email": customer.body["email"],
            "billing_reason": "manual",
            "period_start": now,
            "period_end": now,
        }
        invoice = StoredObject("invoice", new_id("in", 24), customer.id, None, "draft", now, body)
        self._store.insert(invoice)
        for item in pending:
            self._store.attach_item(item.id, invoice.id)
        return invoice

    def _create_invoice_item(self, parameters: dict[str, Any], now: int) -> StoredObject:
        customer = self._require_customer(parameters["customer"])
        currency = parameters["currency"]
        invoice_id = parameters.get("invoice")
        if invoice_id is not None:
            self._check_invoice_takes_item(invoice_id, customer.id, currency)
        body = _item_body(parameters, currency, now)
        item = StoredObject("invoiceitem", new_id("ii", 24), customer.id, invoice_id, None, now, body)
        self._store.insert(item)
        return item

    def _create_product(self, parameters: dict[str, Any], now: int) -> StoredObject:
        product_id = parameters.get("id", new_id("prod", 14))
        if self._store.get("product", product_id) is not None:
            raise ApiError(400, "Product already exists.", code="resource_already_exists", param="id")
        body = {"name": parameters["name"], "metadata": parameters.get("metadata", {}), "active": True}
        product = StoredObject("product", product_id, None, None, None, now, body)
        self._store.insert(product)
        return product

    def _require_customer(self, customer_id: str) -> StoredObject:
        customer = self._store.get("customer", customer_id)
        if customer is None:
            raise missing_object("customer", customer_id, param="customer")
        return customer

    def _check_invoice_takes_item(self, invoice_id: str, customer_id: str, currency: str) -> None:
        invoice = self._store.get("invoice", invoice_id)
        if invoice is None:
            raise missing_object("invoice", invoice_id, param="invoice")
        if invoice.status != "draft":
            raise _not_editable(invoice)
        if invoice.customer != customer_id:
            raise ApiError(
                400,
                f"Invoice {invoice_id} belongs to customer {invoice.customer}, not {customer_id}.",
                param="invoice",
            )
        if invoice.body["currency"] != currency:
            raise ApiError(
                400,
                f"Invoice {invoice_id} is in {invoice.body['currency']}, the item in {currency}.",
                param="currency",
            )
        if len(self._store.invoice_items(invoice_id)) >= ITEMS_PER_INVOICE:
            raise ApiError(
                400,
                f"Invoice {invoice_id} already has {ITEMS_PER_INVOICE} items, the maximum.",
                param="invoice",
            )

    def _render(self, stored: StoredObject) -> dict[str, Any]:
        """The object as Stripe answers it."""
        rendered: dict[str, Any] = {"id": stored.id, "object": stored.kind, "livemode": False}
        if stored.kind == "invoiceitem":
            # Stripe says that a line has the metadata it was added with, and nothing of the item behind it.
            return (
                rendered
                | _render_item(stored.body)
                | {
                    "customer": stored.customer,
                    "date": stored.created,
                    "invoice": stored.invoice,
                    "metadata": {} if stored.body.get("is_line") else stored.body["metadata"],
                    "parent": None,
                    "proration": False,
                    "tax_rates": [],
                }
            )
        rendered |= {**stored.body, "created": stored.created}
        if stored.kind in ("customer", "product"):
            return rendered
        items = self._store.invoice_items(stored.id)
        total = sum(item.body["amount"] for item in items)
        # A negative total is owed to nobody: Stripe credits it to the customer's balance when it finalises.
        due = max(total, 0)
        return rendered | {
            "customer": stored.customer,
            "status": stored.status,
            "subtotal": total,
            "total": total,
            "amount_due": due,
            "amount_paid": 0,
            "amount_remaining": due,
            "attempt_count": 0,
            "attempted": False,
            "discounts": [],
            "total_discount_amounts": [],
            "lines": _first_lines(
                f"/v1/invoices/{stored.id}/lines", [_render_line(item) for item in items], LINES_SHOWN
            ),
            "number": None,
            "starting_balance": 0,
        }


def _split(method: str, path: str) -> tuple[str, str | None]:
    """Collection and object id of a path such as `/v1/invoices/in_1`."""
    parts = path.strip("/").split("/")
    if parts[0] != "v1" or len(parts) not in (2, 3) or parts[1] not in COLLECTIONS:
        raise unrecognized(method, path)
    return parts[1], parts[2] if len(parts) == 3 else None


def unrecognized(method: str, path: str) -> ApiError:
    """The error for a method and path that this server does not have, though Stripe may."""
    return ApiError(
        404,
        f"Unrecognized request URL ({method}: {path}). The local Stripe server has /v1/account, "
        "/v1/customers, /v1/products, /v1/invoices, /v1/invoiceitems and /v1/billing/meters, to create, retrieve and "
        "list, and what its README names.",
    )


def _not_editable(invoice: StoredObject) -> ApiError:
    return ApiError(
        400,
        f"Invoice {invoice.id} has status {invoice.status}: only a draft can be changed.",
        code="invoice_not_editable",
        param="invoice",
    )


def _item_body(parameters: dict[str, Any], currency: str, now: int) -> dict[str, Any]:
    """What is kept of an invoice item: its amount, and how a price made it where there was one."""
    amount = parameters["amount"]
    return {
        "amount": amount,
        "currency": currency,
        "description": parameters.get("description"),
        "discountable": parameters.get("discountable", amount >= 0),
        "metadata": parameters.get("metadata", {}),
        "period": parameters.get("period", {"start": now, "end": now}),
        "quantity_decimal": parameters.get("quantity_decimal", "1"),
        "unit_amount_decimal": parameters.get("unit_amount_decimal", str(amount)),
        "product": parameters.get("product"),
    }


def _render_item(body: dict[str, Any]) -> dict[str, Any]:
    """What an invoice item and the line that it becomes have in common."""
    # State files from before prices have amounts alone.
    quantity, product = body.get("quantity_decimal", "1"), body.get("product")
    return {
        "amount": body["amount"],
        "currency": body["currency"],
        "description": body["description"],
        "discountable": body["discountable"],
        "discounts": [],
        "period": body["period"],
        "pricing": {
            "type": "price_details",
            "price_details": None if product is None else {"product": product},
            "unit_amount_decimal": body.get("unit_amount_decimal", str(body["amount"])),
        },
        "quantity": int(Decimal(quantity)),
        "quantity_decimal": quantity,
    }


def _render_line(item: StoredObject) -> dict[str, Any]:
    """The line of an invoice that an item on it is."""
    details = {"invoice_item": item.id, "proration": False, "proration_details": None, "subscription": None}
    return {
        "id": f"il_{item.id.removeprefix('ii_')}",
        "object": "line_item",
        "livemode": False,
        **_render_item(item.body),
        "invoice": item.invoice,
        "metadata": item.body["metadata"],
        "parent": {
            "type": "invoice_item_details",
            "invoice_item_details": details,
            "subscription_item_details": None,
        },
        "taxes": [],
    }


def _first_lines(url: str, lines: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    return {"object": "list", "url": url, "has_more": len(lines) > limit, "data": lines[:limit]}


def _check_collection(parameters: dict[str, Any]) -> None:
    sends = parameters.get("collection_method") == "send_invoice"
    if sends and "days_until_due" not in parameters:
        raise ApiError(400, "collection_method send_invoice needs days_until_due.", param="days_until_due")
    if not sends and "days_until_due" in parameters:
        raise ApiError(400, "days_until_due needs collection_method send_invoice.", param="days_until_due")


def _replay(record: IdempotencyRecord, path: str, fingerprint: str) -> Answer:
    advice = f"Try using a key other than '{record.idempotency_key}' if you meant to execute a different request."
    if record.path != path:
        raise ApiError(
            400,
            "Keys for idempotent requests can only be used for the same endpoint they were first used for "
            f"('{path}' vs '{record.path}'). {advice}",
            error_type="idempotency_error",
        )
    if record.fingerprint != fingerprint:
        raise ApiError(
            400,
            "Keys for idempotent requests can only be used with the same parameters they were first used "
            f"with. {advice}",
            error_type="idempotency_error",
        )
    return Answer(record.status, record.body, {"Idempotent-Replayed": "true", "Original-Request": record.request_id})


def _success(rendered: dict[str, Any]) -> Answer:
    return Answer(200, json.dumps(rendered), {})
