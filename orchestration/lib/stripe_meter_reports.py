"""What Stripe found wrong with meter events after it took them: its error reports, brought into the sync log.

Stripe keeps reports for 30 days (API reference, "List events" of v2). An event that one names gets a `failed` row
without an HTTP status, which the sync reads as not delivered, and sends it again under another identifier.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import stripe
from stripe.events import V1BillingMeterErrorReportTriggeredEvent

from orchestration.lib.stripe_errors import ERROR_BODY_CHARACTERS
from orchestration.lib.stripe_readback import PAGE_SIZE
from orchestration.lib.stripe_tables import Entity
from orchestration.lib.stripe_target import StripeTarget, redact_keys
from orchestration.lib.warehouse import Warehouse, append_rows

TYPES = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")
KEPT = timedelta(days=30)
REPORT: Entity = "meter_error_report"


@dataclass(frozen=True)
class InvalidEvent:
    """An event that a report names. `request` is its identifier, or the idempotency key of its request."""

    request: str
    error_code: str
    message: str


@dataclass(frozen=True)
class ErrorReport:
    """A report of Stripe's. `errors` counts all invalid events of its window, of which it names some."""

    report_id: str
    errors: int
    summary: str
    named: tuple[InvalidEvent, ...]


def record_error_reports(
    warehouse: Warehouse,
    target: StripeTarget,
    now: datetime,
    read: Callable[[Callable[[], list[ErrorReport]]], list[ErrorReport]] = lambda call: call(),
) -> list[str]:
    """Bring the reports that the log has not seen into it, all or none; a sentence for each thing to look at.

    Args:
        warehouse: with the sync log, and no transaction open.
        target: the Stripe to ask; it is not asked where the log has no event of the last 30 days.
        now: naive UTC.
        read: makes the calls to Stripe, so that a caller may try them again.

    Raises:
        stripe.StripeError: Stripe cannot be read, if `read` lets that through.
    """
    events = {
        identifier: columns
        for identifier, *columns in warehouse.execute(
            """
            select
                idempotency_key,
                max(entity_key),
                max(amount_minor),
                max(currency),
                max(customer_id),
                max(billing_period),
                max(logged_at)
            from ops.stripe_sync_log
            where
                stripe_account = ?
                and entity = 'meter_event'
            group by idempotency_key
            """,
            [target.log_account],
        ).rows
    }
    if not any(columns[-1] >= now - KEPT for columns in events.values()):
        return []
    found = read(lambda: list_error_reports(target.client, now - KEPT))
    seen = {
        report_id
        for (report_id,) in warehouse.execute(
            "select entity_key from ops.stripe_sync_log where stripe_account = ? and entity = ?",
            [target.log_account, REPORT],
        ).rows
    }
    rows: list[dict[str, Any]] = []
    problems = []
    for report in found:
        if report.report_id in seen:
            continue
        rows.append(_row(REPORT, report.report_id, "confirmed", error_body=report.summary))
        for invalid in report.named:
            identifier = identifier_of(invalid.request, events)
            if identifier is None:
                problems.append(
                    f"Stripe's report {report.report_id} names {invalid.request}, which is no event of ours: "
                    f"{invalid.error_code}: {invalid.message} Something else sends to our meters."
                )
                continue
            line_id, amount_minor, currency, customer_id, billing_period, _ = events[identifier]
            rows.append(
                _row(
                    "meter_event",
                    line_id,
                    "failed",
                    idempotency_key=identifier,
                    amount_minor=amount_minor,
                    currency=currency,
                    customer_id=customer_id,
                    billing_period=billing_period,
                    error_code=invalid.error_code,
                    error_body=invalid.message,
                )
            )
            problems.append(
                f"line {line_id}: Stripe took its event {identifier} and found it invalid afterwards: "
                f"{invalid.error_code}: {invalid.message} It is sent again under another identifier."
            )
        if report.errors > len(report.named):
            problems.append(
                f"Stripe's report {report.report_id} counts {report.errors} invalid events and names "
                f"{len(report.named)}: {report.summary} Run metering reconcile in an hour: it shows what is missing."
            )
    stamp = {"attempt_id": str(uuid.uuid4()), "logged_at": now, "stripe_account": target.log_account}
    with warehouse.transaction():
        append_rows(warehouse, "ops.stripe_sync_log", [stamp | row for row in rows])
    return problems


def list_error_reports(client: stripe.StripeClient, since: datetime) -> list[ErrorReport]:
    """The reports that Stripe made since a naive UTC time, the oldest first."""
    events = client.v2.core.events.list(
        {"types": list(TYPES), "created": {"gte": f"{since.isoformat(timespec='milliseconds')}Z"}, "limit": PAGE_SIZE}
    )
    # Both types have the same data.
    listed = [cast(V1BillingMeterErrorReportTriggeredEvent, event) for event in events.auto_paging_iter()]
    return [_read(event) for event in sorted(listed, key=lambda event: (event.created, event.id))]


def identifier_of(request: str, identifiers: Iterable[str]) -> str | None:
    """Which event a report means: Stripe's reference calls what it names "the request idempotency key"."""
    known = set(identifiers)
    return next((name for name in (request, request.rsplit(".", 2)[0]) if name in known), None)


def _read(event: V1BillingMeterErrorReportTriggeredEvent) -> ErrorReport:
    named = [
        InvalidEvent(sample.request.identifier, kind.code, _short(sample.error_message))
        for kind in event.data.reason.error_types
        for sample in kind.sample_errors
    ]
    return ErrorReport(
        event.id, event.data.reason.error_count, _short(event.data.developer_message_summary), tuple(named)
    )


def _short(text: str) -> str:
    return redact_keys(text)[:ERROR_BODY_CHARACTERS]


def _row(entity: Entity, entity_key: str, step: str, **columns: Any) -> dict[str, Any]:
    names: Sequence[str] = (
        "idempotency_key", "amount_minor", "currency", "customer_id", "billing_period", "error_code", "error_body",
    )  # fmt: skip
    return {"entity": entity, "entity_key": entity_key, "step": step} | {name: columns.get(name) for name in names}
