"""One run of the sync: the calls to Stripe, each between its intent and its outcome in the log."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
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
        self._customers_in_stripe: Mapping[str, str] | None = None
        self._customers_made: set[str] = set()
        self._invoices_in_stripe: dict[str, Mapping[tuple[str, str], str]] = {}
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
            key = self._last_key(group)
            invoice_id = self._confirmed_id("invoice", key)
            if invoice_id is None or self._confirmed_id("finalization", key) is not None:
                continue
            if any(self._confirmed_id("invoice_item", line.line_id) is None for line in group.lines):
                continue
            try:
                self._finalize_invoice(key, invoice_id)
            except RefusedError as refused:
                self._report.problems.append(f"invoice {group.invoice_id} was not finalised, because {refused}")
            except StoppedError as stopped:
                self._report.problems.append(
                    f"stopped while finalising invoice {group.invoice_id}: {stopped} Run the sync again."
                )
                return

    def _last_key(self, group: InvoiceGroup) -> str:
        """The key of the invoice that took the group's last lines: those before it are no drafts any more."""
        number = 1
        while self._confirmed_id("invoice", further_key(group, number + 1)) is not None:
            number += 1
        return further_key(group, number)

    def _finalize_invoice(self, key: str, invoice_id: str) -> None:
        state = self._state("finalization", key)
        status = self._status_of(invoice_id)
        if status is None:
            return
        if status != "draft":
            self._append("finalization", key, "confirmed", stripe_object_id=invoice_id)
            # Without an intent it was a person, or a sync that a restored log has forgotten.
            self._report.finalized += state.first_intent_at is not None
            return
        self._create(
            "finalization",
            key,
            state,
            lambda idempotency_key: self._services.invoices.finalize_invoice(
                invoice_id, {"auto_advance": self._settings.auto_advance}, {"idempotency_key": idempotency_key}
            ),
        )
        self._report.finalized += 1

    def _confirmed_id(self, entity: Entity, entity_key: str) -> str | None:
        """The id in Stripe that the log had before the run, or has from it."""
        return self._confirmed.get((entity, entity_key)) or self._state(entity, entity_key).confirmed_id

    def _send_group(self, group: InvoiceGroup) -> None:
        customer_id = self._ensure_customer(group.lines[0])
        waiting = list(group.lines)
        for number in count(1):
            known_id = self._find_invoice(group, number, customer_id)
            if known_id is None:
                invoice_id = self._create_invoice(group, number, customer_id)
                break
            invoice_id = known_id
            # The status first: what is no draft any more gets no lines between this and the look for them.
            status = self._status_of(invoice_id)
            waiting = self._look_for_lines(group, number, invoice_id, status, waiting)
            if not waiting or status == "draft":
                break
            self._progress(
                f"invoice {group.invoice_id}: {invoice_id} is {status or 'deleted'} in Stripe, "
                f"so {len(waiting)} lines go on a further one"
            )
        sent = len(group.lines) - len(waiting)
        for batch in make_batches(waiting, self._log):
            self._send_batch(further_key(group, number), batch, invoice_id, {})
            sent += len(batch)
            if sent < len(group.lines):
                self._progress(f"invoice {group.invoice_id}: {sent} of {len(group.lines)} lines")

    def _look_for_lines(
        self,
        group: InvoiceGroup,
        number: int,
        stripe_invoice_id: str,
        status: str | None,
        lines: Sequence[OutboxLine],
    ) -> list[OutboxLine]:
        """Record which of the lines an invoice of an earlier sync has, then the invoice; the lines that it has not.

        Raises:
            RefusedError: the invoice was deleted, and nobody knows whether it had some of the lines.
        """
        key = further_key(group, number)
        is_logged = self._state("invoice", key).confirmed_id is not None
        # Before a sync begins a further invoice it has looked here: what it tried since then, it tried there.
        is_last = self._state("invoice", further_key(group, number + 1)) == NOTHING_LOGGED
        unresolved = [line for line in lines if is_last and self._state("invoice_item", line.line_id).is_unresolved]
        found: set[str] = set()
        if status is None:
            self._require_known_outcomes(stripe_invoice_id, unresolved)
        else:
            # The other lines of a void invoice that the log has are to go again: somebody deleted their rows.
            sought = unresolved if status == "void" and is_logged else lines
            if sought:
                found = self._confirm_found(stripe_invoice_id, sought)
        if not is_logged:
            # Not before its lines: a run that ends in between would leave a void invoice that looks like the above.
            self._append("invoice", key, "confirmed", stripe_object_id=stripe_invoice_id)
        return [line for line in lines if line.line_id not in found]

    def _status_of(self, stripe_invoice_id: str) -> str | None:
        """The status that an invoice has in Stripe now; None for a draft that somebody has deleted."""

        def retrieve() -> stripe.Invoice | None:
            try:
                return self._services.invoices.retrieve(stripe_invoice_id)
            except stripe.InvalidRequestError as error:
                if error.http_status == 404:
                    return None
                raise

        invoice = self._look_up("invoice", stripe_invoice_id, retrieve)
        return None if invoice is None else invoice.status

    def _require_known_outcomes(self, stripe_invoice_id: str, unresolved: Iterable[OutboxLine]) -> None:
        """Check that Stripe refused all of the lines, where their invoice is gone and nobody can look for them.

        Raises:
            RefusedError: naming the other lines.
        """
        line_ids = (line.line_id for line in unresolved)
        unknown = [line_id for line_id in line_ids if not self._state("invoice_item", line_id).is_refused]
        if unknown:
            raise RefusedError(
                f"{stripe_invoice_id} was deleted in Stripe, and nobody knows whether it had the lines "
                f"{', '.join(unknown)}. Delete what is left of them among the customer's pending items in Stripe, then "
                "their rows in ops.stripe_sync_log, and run the sync again (docs/stripe.md, Recovery)."
            )

    def _confirm_found(self, stripe_invoice_id: str, lines: Iterable[OutboxLine]) -> set[str]:
        """Record which of the lines are on the invoice; their ids."""
        in_stripe = self._look_up("invoice", stripe_invoice_id, lambda: list_lines(self._client, stripe_invoice_id))
        found = self._confirm(lines, in_stripe)
        self._report.confirmed_by_lookup += len(found)
        return found

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
        self, invoice_key: str, batch: tuple[OutboxLine, ...], invoice_id: str, refused: dict[str, int]
    ) -> None:
        """Add lines in one call; a refused call is taken apart. `refused` counts this run's refusals by line id."""
        failures = [self._state("invoice_item", line.line_id).failures + refused.get(line.line_id, 0) for line in batch]
        key = batch_key(self._target.log_account, invoice_key, batch, failures)
        lines = [line_parameters(line, self._ensure_product(line)) for line in batch]
        name = f"invoice_item {batch[0].line_id}"
        if len(batch) > 1:
            name = f"invoice {invoice_key}: a call of {len(batch)} lines from {batch[0].line_id} on"
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
                remedy = ""
                if "[product]" in str(getattr(refusal.error, "param", None)):
                    remedy = (
                        " Restore the product in Stripe, or set METERING_STRIPE_UNIT_PRICES=0 to send amounts alone."
                    )
                self._report.problems.append(f"{refusal}{remedy}")
                return
            # Stripe does not say that it adds all lines or none, so what it may have added is not sent again.
            found = self._confirm_found(invoice_id, batch)
            missing = [line for line in batch if line.line_id not in found]
            refused = refused | {line.line_id: refused.get(line.line_id, 0) + 1 for line in missing}
            for part in split_refused(tuple(missing), refusal.error) if len(missing) == len(batch) else (missing,):
                if part:
                    self._send_batch(invoice_key, tuple(part), invoice_id, refused)
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
        found = self._find_customers(line.customer_id).get(line.customer_id)
        if found is not None:
            self._append("customer", line.customer_id, "confirmed", stripe_object_id=found)
            return found
        parameters = customer_parameters(line)
        made = self._create(
            "customer",
            line.customer_id,
            state,
            lambda key: self._services.customers.create(parameters, {"idempotency_key": key}),
        )
        self._customers_made.add(made)
        return made

    def _find_customers(self, wanted: str) -> Mapping[str, str]:
        """The ids of all customers in Stripe that a sync has made, by ours, read once in a run.

        All of them, and not those alone that the log has an intent of: a warehouse that was restored has an older log.
        """
        if self._customers_in_stripe is None:
            listed = self._look_up(
                "customer", wanted, lambda: list(self._services.customers.list({"limit": PAGE_SIZE}).auto_paging_iter())
            )
            made = ((metadata_of(customer, CUSTOMER_KEY), customer.id) for customer in listed)
            self._customers_in_stripe = {ours: theirs for ours, theirs in made if ours is not None}
        return self._customers_in_stripe

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

    def _find_invoice(self, group: InvoiceGroup, number: int, stripe_customer_id: str) -> str | None:
        """The id of an invoice that an earlier sync made, by the log or else by Stripe; None where there is none.

        `number` counts from 1 the invoices that the group's lines go on, one after the other. Where Stripe has only a
        later one, somebody has deleted this one, and the later one stands in its place.
        """
        key = further_key(group, number)
        state = self._state("invoice", key)
        if state.confirmed_id is not None:
            return state.confirmed_id
        numbers = {}
        for (invoice_id, part), stripe_invoice_id in self._find_invoices(stripe_customer_id, key).items():
            first, _, further = part.partition(".")
            if (invoice_id, first) == (group.invoice_id, str(group.part)) and (further or "1").isdecimal():
                numbers[int(further or "1")] = stripe_invoice_id
        return min(((found, numbers[found]) for found in numbers if found >= number), default=(0, None))[1]

    def _create_invoice(self, group: InvoiceGroup, number: int, stripe_customer_id: str) -> str:
        key = further_key(group, number)
        part = further_part(group, number)
        parameters = invoice_parameters(group.lines[0], part, stripe_customer_id, self._settings)
        return self._create(
            "invoice",
            key,
            self._state("invoice", key),
            lambda idempotency_key: self._services.invoices.create(parameters, {"idempotency_key": idempotency_key}),
        )

    def _find_invoices(self, stripe_customer_id: str, wanted: str) -> Mapping[tuple[str, str], str]:
        """The ids of a customer's invoices in Stripe that a sync has made, by invoice and part, read once in a run."""
        if stripe_customer_id in self._customers_made:
            return {}
        if stripe_customer_id not in self._invoices_in_stripe:
            listed = self._look_up(
                "invoice",
                wanted,
                lambda: list(
                    self._services.invoices.list(
                        {"customer": stripe_customer_id, "limit": PAGE_SIZE}
                    ).auto_paging_iter()
                ),
            )
            made = ((metadata_of(invoice, INVOICE_KEY), invoice) for invoice in listed)
            self._invoices_in_stripe[stripe_customer_id] = {
                (ours, metadata_of(invoice, PART_KEY) or "1"): invoice.id for ours, invoice in made if ours is not None
            }
        return self._invoices_in_stripe[stripe_customer_id]

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


def further_part(group: InvoiceGroup, number: int) -> str:
    """The `metering_invoice_part` of the invoice with this number among those that a group's lines go on, from 1."""
    return str(group.part) if number == 1 else f"{group.part}.{number}"


def further_key(group: InvoiceGroup, number: int) -> str:
    """The key of the same invoice in the log."""
    return group.key if number == 1 else f"{group.invoice_id}#{further_part(group, number)}"
