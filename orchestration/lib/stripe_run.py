"""One run of the sync: the calls to Stripe, each between its intent and its outcome in the log."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import stripe

from orchestration.lib.stripe_batches import is_about_a_line, make_batches, split_refused
from orchestration.lib.stripe_errors import (
    ERROR_BODY_CHARACTERS,
    RefusedCallError,
    RefusedError,
    StoppedError,
    describe_error,
    error_code,
    is_refusal,
    is_stored,
    with_backoff,
)
from orchestration.lib.stripe_lock import SyncLock
from orchestration.lib.stripe_parameters import (
    CUSTOMER_KEY,
    INVOICE_KEY,
    LINE_KEY,
    PART_KEY,
    batch_key,
    customer_parameters,
    epoch_seconds,
    idempotency_key,
    invoice_parameters,
    line_parameters,
    product_parameters,
)
from orchestration.lib.stripe_plan import InvoiceGroup, find_change
from orchestration.lib.stripe_readback import PAGE_SIZE, StripeObject, item_id_of, lines_of, list_lines, metadata_of
from orchestration.lib.stripe_settings import InvoiceSettings
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_tables import NOTHING_LOGGED, Entity, Log, LogState, OutboxLine, Step, line_columns
from orchestration.lib.stripe_target import StripeTarget, redact_keys
from orchestration.lib.warehouse import Warehouse, append_rows

T = TypeVar("T")

# How far this machine's clock and Stripe's may disagree, when the creation time narrows a list.
CLOCK_SECONDS = 24 * 60 * 60


class Run:
    """One run of the sync: the calls to Stripe, and their rows in the log."""

    def __init__(
        self,
        warehouse: Warehouse,
        target: StripeTarget,
        settings: InvoiceSettings,
        log: Log,
        report: SyncReport,
        progress: Callable[[str], None],
        sleep: Callable[[float], None],
        lock: SyncLock,
    ) -> None:
        self._warehouse = warehouse
        self._lock = lock
        self._target = target
        self._client = target.client
        self._services = target.client.v1
        self._settings = settings
        self._log = log
        self._confirmed: dict[tuple[Entity, str], str] = {}
        self._report = report
        self._progress = progress
        self._sleep = sleep
        self._attempt_id = str(uuid.uuid4())
        self._customers: dict[str, str | None] = {}
        self._products: dict[str, str | None] = {}

    def send(self, groups: tuple[InvoiceGroup, ...]) -> bool:
        """Send the groups in order; refusals go into the report, and so does what ends the run early.

        Returns:
            Whether the run came to its end.
        """
        for number, group in enumerate(groups, start=1):
            first = group.lines[0]
            self._progress(
                f"invoice {number}/{len(groups)} {group.customer_id} {first.billing_period} "
                f"{first.currency}: {len(group.lines)} lines"
            )
            try:
                self._send_group(group)
            except RefusedError as refused:
                self._report.failed += len(group.lines)
                self._report.problems.append(
                    f"invoice {group.invoice_id}: {len(group.lines)} lines were not sent, because {refused}"
                )
            except StoppedError as stopped:
                self._report.problems.append(
                    f"stopped at invoice {number} of {len(groups)} ({group.invoice_id}): {stopped} "
                    "Run the sync again: it looks in Stripe first, and sends what is missing."
                )
                return False
        return True

    def finalize(self, groups: tuple[InvoiceGroup, ...]) -> None:
        """Finalise, where the settings say so, the invoices of which all lines are in Stripe, with our amounts."""
        changed = {change.line_id for change in self._report.changes}
        for group in groups if self._settings.finalizes else ():
            if any(line.line_id in changed for line in group.lines):
                continue
            invoice_id = self._confirmed_id("invoice", group.key)
            if invoice_id is None or self._confirmed_id("finalization", group.key) is not None:
                continue
            if any(self._confirmed_id("invoice_item", line.line_id) is None for line in group.lines):
                continue
            try:
                self._finalize_invoice(group, invoice_id)
            except RefusedError as refused:
                self._report.problems.append(f"invoice {group.invoice_id} was not finalised, because {refused}")
            except StoppedError as stopped:
                self._report.problems.append(
                    f"stopped while finalising invoice {group.invoice_id}: {stopped} Run the sync again."
                )
                return

    def _finalize_invoice(self, group: InvoiceGroup, invoice_id: str) -> None:
        state = self._state("finalization", group.key)
        if state.first_intent_at is not None:
            invoice = self._look_up("finalization", group.key, lambda: self._services.invoices.retrieve(invoice_id))
            if invoice.status != "draft":
                self._append("finalization", group.key, "confirmed", stripe_object_id=invoice_id)
                self._report.finalized += 1
                return
        self._create(
            "finalization",
            group.key,
            state,
            lambda key: self._services.invoices.finalize_invoice(
                invoice_id, {"auto_advance": self._settings.auto_advance}, {"idempotency_key": key}
            ),
        )
        self._report.finalized += 1

    def _confirmed_id(self, entity: Entity, entity_key: str) -> str | None:
        """The id in Stripe that the log had before the run, or has from it."""
        return self._confirmed.get((entity, entity_key)) or self._state(entity, entity_key).confirmed_id

    def _send_group(self, group: InvoiceGroup) -> None:
        customer_id = self._ensure_customer(group.lines[0])
        invoice_id, is_new = self._ensure_invoice(group, customer_id)
        waiting = list(group.lines)
        if not is_new and any(self._state("invoice_item", line.line_id).is_unresolved for line in waiting):
            waiting = self._confirm_found(invoice_id, waiting)
        sent = len(group.lines) - len(waiting)
        for batch in make_batches(waiting, self._log):
            self._send_batch(group, batch, invoice_id, {})
            sent += len(batch)
            if sent < len(group.lines):
                self._progress(f"invoice {group.invoice_id}: {sent} of {len(group.lines)} lines")

    def _confirm_found(self, stripe_invoice_id: str, lines: Sequence[OutboxLine]) -> list[OutboxLine]:
        """Record which of the lines are on the invoice, and return the others."""
        in_stripe = self._look_up("invoice", stripe_invoice_id, lambda: list_lines(self._client, stripe_invoice_id))
        found = self._confirm(lines, in_stripe)
        self._report.confirmed_by_lookup += len(found)
        return [line for line in lines if line.line_id not in found]

    def _confirm(
        self, lines: Iterable[OutboxLine], in_stripe: Iterable[stripe.InvoiceLineItem], **columns: Any
    ) -> set[str]:
        """Record the lines that Stripe has, with the amounts that it has; their ids."""
        # The oldest, should a line be there twice: Stripe lists what was added to an invoice in that order.
        found: dict[str | None, stripe.InvoiceLineItem] = {}
        for item in in_stripe:
            found.setdefault(metadata_of(item, LINE_KEY), item)
        present = [(line, found[line.line_id]) for line in lines if line.line_id in found]
        self._write(
            [
                {
                    "entity": "invoice_item",
                    "step": "confirmed",
                    **line_columns(line),
                    "stripe_object_id": item_id_of(item),
                    "amount_minor": item.amount,
                    "currency": item.currency.upper(),
                    **columns,
                }
                for line, item in present
            ]
        )
        for line, item in present:
            self._report_difference(line, item)
        return {line.line_id for line, _ in present}

    def _send_batch(
        self, group: InvoiceGroup, batch: tuple[OutboxLine, ...], invoice_id: str, refused: dict[str, int]
    ) -> None:
        """Add lines in one call; a refused call is taken apart. `refused` counts this run's refusals by line id."""
        failures = [self._state("invoice_item", line.line_id).failures + refused.get(line.line_id, 0) for line in batch]
        key = batch_key(self._target.log_account, batch, failures)
        lines = [line_parameters(line, self._ensure_product(line)) for line in batch]
        name = f"invoice_item {batch[0].line_id}"
        if len(batch) > 1:
            name = f"invoice {group.invoice_id}: a call of {len(batch)} lines from {batch[0].line_id} on"
        try:
            invoice = self._attempt(
                name,
                [("invoice_item", line_columns(line)) for line in batch],
                key,
                lambda: self._services.invoices.add_lines(invoice_id, {"lines": lines}, {"idempotency_key": key}),
            )
        except RefusedCallError as refusal:
            if len(batch) == 1 or not is_about_a_line(refusal.error):
                self._report.failed += len(batch)
                self._report.problems.append(str(refusal))
                return
            # Stripe does not say that it adds all lines or none, so what it may have added is not sent again.
            missing = self._confirm_found(invoice_id, batch)
            refused = refused | {line.line_id: refused.get(line.line_id, 0) + 1 for line in missing}
            for part in split_refused(tuple(missing), refusal.error) if len(missing) == len(batch) else (missing,):
                if part:
                    self._send_batch(group, tuple(part), invoice_id, refused)
            return
        in_stripe = self._look_up("invoice", invoice_id, lambda: lines_of(self._client, invoice))
        response = invoice.last_response
        answer = {} if response is None else {"request_id": response.request_id, "http_status": response.code}
        added = self._confirm(batch, in_stripe, idempotency_key=key, **answer)
        self._report.created += len(added)
        if len(added) < len(batch):
            self._report.unknown += 1
            raise StoppedError(f"{name}: Stripe has taken it (idempotency key {key}), and does not show every line.")

    def _report_difference(self, line: OutboxLine, item: stripe.InvoiceLineItem) -> None:
        """A line found in Stripe may have been sent with another amount than the outbox now has."""
        in_stripe = LogState(item_id_of(item), item.amount, item.currency.upper(), 0, None)
        change = find_change(line.line_id, in_stripe, line)
        if change is not None:
            self._report.changed_after_sync += 1
            self._report.changes += (change,)
            self._report.problems.append(str(change))

    def _ensure_customer(self, line: OutboxLine) -> str:
        """The customer's id in Stripe: mapped, confirmed in the log, found in Stripe, or created."""
        if line.stripe_customer_id is not None:
            return line.stripe_customer_id
        if line.customer_id not in self._customers:
            self._customers[line.customer_id] = None
            self._customers[line.customer_id] = self._find_or_create_customer(line)
        customer_id = self._customers[line.customer_id]
        if customer_id is None:
            raise RefusedError(f"customer {line.customer_id} was refused earlier in this run.")
        return customer_id

    def _find_or_create_customer(self, line: OutboxLine) -> str:
        state = self._state("customer", line.customer_id)
        if state.confirmed_id is not None:
            return state.confirmed_id
        if not self._settings.creates_customers:
            raise RefusedError(
                f"customer {line.customer_id} has no stripe_customer_id in customers.csv, and "
                "METERING_STRIPE_CREATE_CUSTOMERS=0."
            )
        if state.first_intent_at is not None:
            since = int(epoch_seconds(state.first_intent_at)) - CLOCK_SECONDS
            listed = self._look_up(
                "customer",
                line.customer_id,
                lambda: list(
                    self._services.customers.list({"created": {"gte": since}, "limit": PAGE_SIZE}).auto_paging_iter()
                ),
            )
            for customer in listed:
                if metadata_of(customer, CUSTOMER_KEY) == line.customer_id:
                    self._append("customer", line.customer_id, "confirmed", stripe_object_id=customer.id)
                    return customer.id
        parameters = customer_parameters(line)
        return self._create(
            "customer",
            line.customer_id,
            state,
            lambda key: self._services.customers.create(parameters, {"idempotency_key": key}),
        )

    def _ensure_product(self, line: OutboxLine) -> str | None:
        """The product of a line's metric in Stripe, made where it is missing; None where the amount is to be shown."""
        if not self._settings.shows_unit_prices or line.metric_code is None or line.shown_price is None:
            return None
        if line.metric_code not in self._products:
            try:
                self._products[line.metric_code] = self._find_or_create_product(line.metric_code)
            except RefusedError as refused:
                self._products[line.metric_code] = None
                self._report.problems.append(f"lines of metric {line.metric_code} show their amount alone: {refused}")
        return self._products[line.metric_code]

    def _find_or_create_product(self, metric_code: str) -> str:
        state = self._state("product", metric_code)
        if state.confirmed_id is not None:
            return state.confirmed_id
        parameters = product_parameters(metric_code)
        try:
            return self._create(
                "product",
                metric_code,
                state,
                lambda key: self._services.products.create(parameters, {"idempotency_key": key}),
            )
        except RefusedCallError as refused:
            if refused.error.code != "resource_already_exists":
                raise
            self._append("product", metric_code, "confirmed", stripe_object_id=parameters["id"])
            return parameters["id"]

    def _ensure_invoice(self, group: InvoiceGroup, stripe_customer_id: str) -> tuple[str, bool]:
        """The draft's id in Stripe, and whether this run created it, so that it can have no items yet."""
        line = group.lines[0]
        state = self._state("invoice", group.key)
        if state.confirmed_id is not None:
            return state.confirmed_id, False
        if state.first_intent_at is not None:
            listed = self._look_up(
                "invoice",
                group.key,
                lambda: list(
                    self._services.invoices.list(
                        {"customer": stripe_customer_id, "limit": PAGE_SIZE}
                    ).auto_paging_iter()
                ),
            )
            for invoice in listed:
                part = metadata_of(invoice, PART_KEY) or "1"
                if (metadata_of(invoice, INVOICE_KEY), part) == (group.invoice_id, str(group.part)):
                    self._append("invoice", group.key, "confirmed", stripe_object_id=invoice.id)
                    return invoice.id, False
        parameters = invoice_parameters(line, group.part, stripe_customer_id, self._settings)
        invoice_id = self._create(
            "invoice",
            group.key,
            state,
            lambda key: self._services.invoices.create(parameters, {"idempotency_key": key}),
        )
        return invoice_id, True

    def _state(self, entity: Entity, entity_key: str) -> LogState:
        return self._log.get((entity, entity_key), NOTHING_LOGGED)

    def _look_up(self, entity: Entity, entity_key: str, call: Callable[[], T]) -> T:
        """Read from Stripe. What was looked for stays as it is in the log, whatever happens."""
        try:
            return with_backoff(call, self._sleep)
        except stripe.StripeError as error:
            if is_refusal(error) and not isinstance(error, stripe.AuthenticationError):
                raise RefusedError(f"looking for {entity} {entity_key} failed: {describe_error(error)}") from None
            self._report.unknown += 1
            raise StoppedError(f"looking for {entity} {entity_key} failed: {describe_error(error)}") from None

    def _create(self, entity: Entity, entity_key: str, state: LogState, call: Callable[[str], StripeObject]) -> str:
        """Create one object between its intent and its outcome, and return its id in Stripe.

        Raises:
            RefusedError: Stripe answered with a 4xx that concerns this object.
            StoppedError: the outcome is unknown, or the key was refused.
        """
        key = idempotency_key(self._target.log_account, entity, entity_key, state.failures)
        created = self._attempt(
            f"{entity} {entity_key}", [(entity, {"entity_key": entity_key})], key, lambda: call(key)
        )
        response = created.last_response
        self._append(
            entity,
            entity_key,
            "confirmed",
            idempotency_key=key,
            stripe_object_id=created.id,
            request_id=None if response is None else response.request_id,
            http_status=None if response is None else response.code,
        )
        return created.id

    def _attempt(
        self, name: str, subjects: Sequence[tuple[Entity, Mapping[str, Any]]], key: str, call: Callable[[], T]
    ) -> T:
        """Make a call that creates something, with the intents before it and, unless it succeeds, the outcomes after.

        Args:
            name: of what is created, for people.
            subjects: what is created, with the columns of the log that do not depend on the outcome.
            key: the idempotency key.
            call: the call.

        Raises:
            RefusedError: Stripe answered with a 4xx that concerns these objects.
            StoppedError: the outcome is unknown, or the key was refused.
        """
        self._write([{"entity": entity, "step": "intent", "idempotency_key": key, **of} for entity, of in subjects])
        try:
            return with_backoff(call, self._sleep)
        except stripe.StripeError as error:
            if is_refusal(error) or is_stored(error):
                self._write(
                    [
                        {
                            "entity": entity,
                            "step": "failed",
                            "idempotency_key": key,
                            "request_id": error.request_id,
                            "http_status": error.http_status,
                            "error_code": error_code(error),
                            "error_body": redact_keys(error.http_body or "")[:ERROR_BODY_CHARACTERS],
                            **of,
                        }
                        for entity, of in subjects
                    ]
                )
            if not is_refusal(error):
                self._report.unknown += 1
                raise StoppedError(
                    f"{name} has no known outcome (idempotency key {key}): {describe_error(error)}"
                ) from None
            message = f"{name} was refused (idempotency key {key}): {describe_error(error)}"
            if isinstance(error, stripe.AuthenticationError):
                self._report.failed += sum(entity == "invoice_item" for entity, _ in subjects)
                raise StoppedError(f"{message} Check STRIPE_API_KEY.") from None
            raise RefusedCallError(message, error) from None

    def _append(self, entity: Entity, entity_key: str, step: Step, **columns: Any) -> None:
        """Add a row to the log and commit it."""
        self._write([{"entity": entity, "entity_key": entity_key, "step": step, **columns}])

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows with the same columns to the log, and commit them together; intents only while the lock is held."""
        if not rows:
            return
        stamp: dict[str, object] = {
            "attempt_id": self._attempt_id,
            "logged_at": datetime.now(UTC).replace(tzinfo=None),
            "stripe_account": self._target.log_account,
        }
        for row in rows:
            if row["step"] == "confirmed":
                self._confirmed[row["entity"], row["entity_key"]] = str(row["stripe_object_id"])
        with self._warehouse.transaction():
            if rows[0]["step"] == "intent":
                self._lock.renew()
            append_rows(self._warehouse, "ops.stripe_sync_log", [stamp | dict(row) for row in rows])
