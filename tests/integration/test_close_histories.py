"""Random histories of usage, prices, approvals and closes: what is billed stays billed, and adds up to what is rated.

METERING_CLOSE_HISTORIES=20 draws that many, twice as long; METERING_CLOSE_SEED=n draws one of them again.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal

import pytest

from tests.integration.closing_book import (
    CUSTOMERS,
    Ledger,
    Usage,
    as_of_close,
    close_and_die,
    month_start,
    period_of,
    price_book,
    require_conserved,
    require_oracle,
    require_reproduced,
)
from tests.integration.conftest import Warehouse
from tests.integration.price_books import write_seeds
from tests.integration.test_close import build, close

HISTORIES = int(os.environ.get("METERING_CLOSE_HISTORIES", "0"))
SEED = os.environ.get("METERING_CLOSE_SEED")
SEEDS = [int(SEED)] if SEED else list(range(1, (HISTORIES or 1) + 1))
STEPS = 8 if HISTORIES else 2


class History:
    """A warehouse with a price book, and the random steps that are taken with both."""

    def __init__(self, warehouse: Warehouse, seed: int) -> None:
        self.warehouse = warehouse
        self.random = random.Random(seed)
        self.usage = Usage(self.random)
        self.ledger = Ledger()
        self.original = price_book()
        self.seeds = deepcopy(self.original)
        self.approvals: dict[str, dict[str, object]] = {}
        self.month = 1
        self.taken: Counter[str] = Counter()
        self.log: list[str] = []

    @property
    def as_of(self) -> datetime:
        return as_of_close(self.month)

    def note(self, step: str, detail: object = "") -> None:
        self.taken[step] += 1
        self.log.append(f"{step} {detail}".rstrip())

    # ---------- what changes

    def receive(self) -> None:
        """Usage of the month and of months before, with copies and corrections of what was received before."""
        events = []
        for customer, (_, _, subscribed_at, _, _) in CUSTOMERS.items():
            months = [self.month] * self.random.randint(0, 8) + self.random.choices(
                range(1, self.month + 1), k=self.random.randint(0, 5)
            )
            for month in months:
                first = max(month_start(month), subscribed_at)
                events.append(self.usage.draw(customer, first, month_start(month + 1)))
        copies = self.random.choices(self.usage.events, k=3) if self.usage.events else []
        corrections = self.usage.correct(self.random.randint(0, 3))
        self.usage.deliver(self.warehouse, self.as_of - timedelta(hours=1), events, copies + corrections)
        self.note("receive", f"{len(events)} events, {len(corrections)} corrections")

    def change_prices(self) -> None:
        """Of the past too, as nothing forbids it."""
        change = self.random.choice(
            ["tier", "tier", "discount", "bound", "entitlement", "commitment", "grant", "zone", "take back"]
        )
        factor = self.random.choice([Decimal("0.5"), Decimal("1.5"), Decimal(3)])
        if change == "tier":
            row = self.random.choice(self.seeds["pricing/charge_tiers"])
            row["unit_amount"] *= factor
        elif change == "discount":
            self.random.choice(self.seeds["pricing/discounts"])["percentage"] = Decimal(
                self.random.choice(["0.1", "0.3"])
            )
        elif change == "bound":
            row = self.random.choice(self.seeds["pricing/charges"])
            for name in ("minimum_amount", "maximum_amount"):
                if row.get(name) is not None:
                    row[name] = (row[name] * factor).quantize(Decimal(1))
        elif change == "entitlement":
            self.random.choice(self.seeds["pricing/entitlements"])["included_quantity"] = self.random.randint(1, 600)
        elif change == "commitment":
            row = self.random.choice(self.seeds["pricing/commitments"])
            row["amount"] = (row["amount"] * factor).quantize(Decimal(1))
        elif change == "grant":
            grant = dict(self.random.choice(self.seeds["pricing/credit_grants"]))
            number = len(self.seeds["pricing/credit_grants"])
            effective = month_start(self.random.randint(1, self.month)) + timedelta(days=5)
            grant |= {"grant_code": f"{grant['customer_id']}-grant-{number}", "effective_at": effective}
            grant |= {"created_at": effective, "expires_at": None, "recurrence": None}
            self.seeds["pricing/credit_grants"].append(grant)
        elif change == "zone":
            row = self.random.choice(self.seeds["accounts/subscriptions"])
            row["time_zone"] = self.random.choice(["UTC", "Asia/Tokyo", "America/New_York"])
        else:
            self.seeds = deepcopy(self.original)
        self.note("change", change)

    def approve(self, share: float) -> None:
        """Some of the adjustments that wait, or all."""
        waiting = self.warehouse.query(
            "select distinct rerating_id from marts.fct_pending_adjustments "
            "where adjustment_status = 'needs_approval' order by 1"
        )
        for (rerating_id,) in waiting:
            if self.random.random() < share:
                self.approvals[rerating_id] = {
                    "rerating_id": rerating_id,
                    "approved_by": "finance",
                    "approved_on": date(2025, 1, 1),
                    "reason": "history",
                }
                self.taken["approved"] += 1

    # ---------- what is done about it

    def build(self, *, full_refresh: bool = False) -> None:
        approvals = {"policy/rerating_approvals": list(self.approvals.values())}
        write_seeds(self.warehouse.settings.project, {**self.seeds, **approvals})
        build(self.warehouse, self.as_of, full_refresh=full_refresh)
        self.note("full refresh" if full_refresh else "build")
        self.check()

    def check(self) -> None:
        self.ledger.require_kept(self.warehouse)
        require_conserved(self.warehouse)

    def held_back(self) -> list[tuple[object, ...]]:
        return self.warehouse.query(
            "select line_id, adjustment_status, amount_minor from marts.fct_pending_adjustments "
            "where adjustment_status <> 'ready' order by 1"
        )

    def close(self) -> None:
        """Any month that is over, in any order, for all or one of the customers; perhaps only the adjustments."""
        month = self.random.choice([self.month, self.month, self.random.randint(1, self.month)])
        customers = self.random.choice([[], [], [self.random.choice(list(CUSTOMERS))]])
        adjustments_only = self.random.random() < 0.3 and self.is_closed(month, customers or list(CUSTOMERS))
        if not customers and not adjustments_only and self.random.random() < 0.4:
            killed = close_and_die(self.warehouse, period_of(month), self.random.randint(5, 30))
            self.note("killed" if killed else "outlived")
            self.check()
        waiting = self.held_back()
        report = close(self.warehouse, period_of(month), customers=customers, adjustments_only=adjustments_only)
        self.note("adjustments" if adjustments_only else "close", f"{report.run_id} {customers} {report.lines} lines")
        assert self.held_back() == waiting, "what waits for an approval was billed, or waits no longer"
        self.check()
        again = close(self.warehouse, period_of(month), customers=customers, adjustments_only=adjustments_only)
        assert (again.run_id, again.lines) == (None, 0)

    def is_closed(self, month: int, customers: list[str]) -> bool:
        """Whether the month is closed for one of them at least."""
        rows = self.warehouse.query(
            "select customer_id from ledger.closed_periods where billing_period = ?", [period_of(month)]
        )
        return not {customer_id for (customer_id,) in rows}.isdisjoint(customers)

    def end(self) -> None:
        """Everything approved and closed: the ledger is what the oracle says, a run of the past can be built again, and a
        full refresh changes nothing.
        """
        while self.held_back():
            self.approve(1)
            self.build()
        for month in range(1, self.month + 1):
            close(self.warehouse, period_of(month))
        close(self.warehouse, period_of(self.month), adjustments_only=True)
        self.check()
        assert self.warehouse.query("select count(*) from marts.fct_pending_adjustments") == [(0,)]
        closed = [period_of(month) for month in range(1, self.month + 1)]
        self.taken["cents"] += require_oracle(self.warehouse, self.seeds, self.usage.events, self.as_of, closed)
        runs = self.warehouse.query("select run_id from ledger.billing_runs where line_count > 0 order by closed_at")
        self.taken["reproduced"] += require_reproduced(self.warehouse, self.random.choice(runs)[0])
        built_step_by_step = self.warehouse.marts()
        self.build(full_refresh=True)
        for name, rows in self.warehouse.marts().items():
            assert rows == built_step_by_step[name], f"{name} is another after a full refresh"


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_closed_stays_and_adds_up(warehouse_of_copy: Warehouse, green_guards: None, seed: int) -> None:
    """After each step: no row of the ledger has changed, ledger and pending are what is rated, closing again adds nothing."""
    folder = warehouse_of_copy.folder / str(seed)
    settings = replace(warehouse_of_copy.settings, database=folder / "metering.duckdb")
    history = History(Warehouse(settings, folder), seed)
    try:
        for step in range(STEPS):
            if history.random.random() < 0.6:
                history.month += 1
            history.receive()
            if history.random.random() < 0.6:
                history.change_prices()
            if step > 0 and history.random.random() < 0.6:
                history.approve(history.random.choice([0.5, 1]))
            history.build(full_refresh=history.random.random() < 0.15)
            history.close()
        history.end()
    finally:
        # Shown by pytest when the history fails.
        print(f"METERING_CLOSE_SEED={seed}: {dict(history.taken)}\nsteps: {'; '.join(history.log)}")
