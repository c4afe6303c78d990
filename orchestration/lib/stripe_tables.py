"""What the sync reads from the warehouse: the outbox of invoice items, and the log of what was tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from orchestration.lib.stripe_errors import StripeSyncError
from orchestration.lib.warehouse import MissingObjectError, Warehouse

Entity = Literal[
    "customer", "product", "invoice", "invoice_item", "finalization", "meter", "meter_event", "meter_error_report"
]
Step = Literal["intent", "confirmed", "failed"]


@dataclass(frozen=True)
class OutboxLine:
    """One row of `marts.stripe_invoice_items`.

    Times are naive UTC, the end exclusive. `amount_minor` counts the currency's minor units. `hold_reason` is
    None when the line may be sent; `stripe_customer_id` is None when the customer is not mapped to one in
    Stripe. `quantity` times `unit_amount_minor` is the amount, to the last digit; both are None where no one price
    made the line.
    """

    line_id: str
    invoice_id: str
    run_id: str
    customer_id: str
    customer_name: str | None
    stripe_customer_id: str | None
    billing_period: str
    service_period_start_at: datetime
    service_period_end_at: datetime
    currency: str
    amount_minor: int
    description: str | None
    subscription_id: str | None
    metric_code: str | None
    charge_code: str | None
    price_version: int | None
    hold_reason: str | None
    quantity: Decimal | None = None
    unit_amount_minor: Decimal | None = None

    @property
    def shown_price(self) -> tuple[Decimal, Decimal] | None:
        """Quantity and unit price in minor units, where Stripe would make the same amount of them."""
        if self.quantity is None or self.unit_amount_minor is None or self.metric_code is None:
            return None
        if self.quantity <= 0 or self.quantity * self.unit_amount_minor != self.amount_minor:
            return None
        return self.quantity, self.unit_amount_minor


@dataclass(frozen=True)
class LogState:
    """What the log says of one object in one account.

    `confirmed_id` is the id in Stripe, or None when nothing was confirmed; the amount (minor units) and
    currency are those confirmed, for lines only. `failures` counts failed rows; `first_intent_at` is in UTC.
    What follows is for lines only: what the line was last tried with, whether Stripe refused each try, and the
    idempotency key of the last one.
    """

    confirmed_id: str | None
    confirmed_amount_minor: int | None
    confirmed_currency: str | None
    failures: int
    first_intent_at: datetime | None
    tried_currency: str | None = None
    customer_id: str | None = None
    billing_period: str | None = None
    is_refused: bool = False
    tried_key: str | None = None

    @property
    def is_unresolved(self) -> bool:
        """Something was tried and nothing confirmed: Stripe may have the object."""
        return self.confirmed_id is None and self.first_intent_at is not None


NOTHING_LOGGED = LogState(None, None, None, 0, None)
Log = Mapping[tuple[str, str], LogState]


def read_outbox(warehouse: Warehouse) -> list[OutboxLine]:
    """All rows of `marts.stripe_invoice_items`, ordered by line id.

    Raises:
        StripeSyncError: the table is missing, or lacks a column.
    """
    rows = query(
        warehouse,
        """
        select
            line_id, invoice_id, run_id, customer_id, customer_name, stripe_customer_id, billing_period,
            service_period_start_at, service_period_end_at, currency, amount_minor, description,
            subscription_id, metric_code, charge_code, price_version, hold_reason, quantity, unit_amount_minor
        from marts.stripe_invoice_items
        order by line_id
        """,
        [],
    )
    return [OutboxLine(*row) for row in rows]


def read_log(warehouse: Warehouse, stripe_account: str) -> Log:
    """The state of every object that `ops.stripe_sync_log` has for an account, by entity and entity key.

    Raises:
        StripeSyncError: the table is missing, or lacks a column.
    """
    rows = query(
        warehouse,
        """
        select
            entity,
            entity_key,
            max_by(stripe_object_id, case when step = 'confirmed' then logged_at end),
            max_by(amount_minor, case when step = 'confirmed' then logged_at end),
            max_by(currency, case when step = 'confirmed' then logged_at end),
            count_if(step = 'failed'),
            min(case when step = 'intent' then logged_at end),
            max_by(currency, logged_at),
            max_by(customer_id, logged_at),
            max_by(billing_period, logged_at),
            -- An idempotency error says that an earlier try with other parameters did arrive.
            count_if(step = 'intent') = count_if(
                step = 'failed' and http_status < 500 and error_code is distinct from 'idempotency_error'
            ),
            max_by(idempotency_key, case when step = 'intent' then logged_at end)
        from ops.stripe_sync_log
        where stripe_account = ?
        group by entity, entity_key
        """,
        [stripe_account],
    )
    return {(row[0], row[1]): LogState(*row[2:]) for row in rows}


def line_columns(line: OutboxLine) -> dict[str, Any]:
    """What a row of the log says of a line that is tried."""
    return {
        "entity_key": line.line_id,
        "amount_minor": line.amount_minor,
        "currency": line.currency,
        "customer_id": line.customer_id,
        "billing_period": line.billing_period,
    }


def query(warehouse: Warehouse, statement: str, values: list[str]) -> list[tuple[Any, ...]]:
    """The rows of a statement that reads the outbox or a log.

    Raises:
        StripeSyncError: what it reads is not there.
    """
    try:
        return warehouse.execute(statement, values).rows
    except MissingObjectError as error:
        raise StripeSyncError(
            f"The warehouse lacks what the sync reads ({str(error).splitlines()[0]}). "
            "Run `dbt build` on it first: that makes the outbox and the sync log."
        ) from error
