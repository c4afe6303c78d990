"""A small price book whose rules make adjustments large, random usage of it, and what must hold after each close."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from orchestration.lib.past import reproduce_runs
from tests.integration.conftest import Row, Warehouse
from tests.integration.oracle import CreditKey, LineKey, Oracle
from tests.integration.test_close import KILLED_CLOSE
from tests.integration.test_rating_oracle import KEY_COLUMNS

Event = dict[str, Any]
Seeds = dict[str, list[dict[str, Any]]]

MINOR_UNITS = {"USD": 2, "JPY": 0}
BEGIN = datetime(2025, 1, 1)
# Plan, time zone, start of the subscription, currency, and how many of it are worth a dollar.
CUSTOMERS = {
    "cus_ny": ("plan-usd", "America/New_York", datetime(2025, 1, 1), "USD", 1),
    "cus_ktm": ("plan-jpy", "Asia/Kathmandu", datetime(2025, 1, 10), "JPY", 100),
}
REGIONS = ["eu", "us"]


def month_start(month: int) -> datetime:
    """The first day of the n-th month of 2025, which may lie in 2026."""
    return datetime(2025 + (month - 1) // 12, (month - 1) % 12 + 1, 1)


def period_of(month: int) -> str:
    return f"{month_start(month):%Y-%m}"


def as_of_close(month: int) -> datetime:
    """After the grace of a month in every time zone."""
    return month_start(month + 1) + timedelta(days=2, hours=9)


def price_book() -> Seeds:
    """Tiers with a cliff, packages, bounds, commitments, rollover, credits and discounts, for a customer in each currency."""
    event_key = {"event_type": "work", "schema_version": 1}
    seeds: Seeds = {
        "catalog/event_types": [event_key | {"description": "work"}],
        "catalog/event_properties": [
            event_key
            | {"property_name": name, "data_type": data_type, "is_required": True, "minimum": minimum}
            | {"description": name}
            for name, data_type, minimum in (
                ("amount", "decimal", 0),
                ("user", "string", None),
                ("region", "string", None),
            )
        ],
        "catalog/billable_metrics": [
            {
                "metric_code": code,
                "metric_name": code,
                "event_type": "work",
                "aggregation": aggregation,
                "property_name": property_name,
                "unit": "unit",
                "finance_confirmed_on": date(2024, 1, 1),
                "description": code,
            }
            for code, aggregation, property_name in (
                ("calls", "count", None),
                ("work", "sum", "amount"),
                ("by_region", "sum", "amount"),
                ("peak", "max", "amount"),
                ("users", "unique_count", "user"),
            )
        ],
        "catalog/metric_dimensions": [
            {"metric_code": "by_region", "purpose": "pricing", "dimension_position": 1, "property_name": "region"}
        ],
        "catalog/metric_filters": [],
        "accounts/customers": [{"customer_id": code, "customer_name": code} for code in CUSTOMERS],
        "accounts/subscriptions": [],
    }
    for name in (
        "plans", "charges", "charge_tiers", "entitlements", "commitments", "discounts", "credit_grants",
        "credit_grant_charges", "percentage_terms",
    ):  # fmt: skip
        seeds[f"pricing/{name}"] = []
    for customer, (plan, zone, start, currency, rate) in CUSTOMERS.items():
        seeds["accounts/subscriptions"].append(
            {"subscription_id": f"{customer}-sub", "customer_id": customer, "plan_code": plan, "time_zone": zone}
            | {"started_at": start}
        )
        seeds["pricing/plans"].append(
            {"plan_code": plan, "plan_family": plan, "plan_version": 1, "plan_name": plan}
            | {"billing_interval": "month", "currency_code": currency}
        )
        _charges(seeds, plan, rate)
        _terms(seeds, customer, plan, currency, rate)
    return seeds


def _charges(seeds: Seeds, plan: str, rate: int) -> None:
    """Each charge with its tiers: (up_to, package_size, unit_amount, flat_amount)."""
    changed = month_start(2) + timedelta(days=14)
    charges: list[tuple[str, str | None, str, list[tuple[Any, Any, str, str]], dict[str, Any]]] = [
        ("package", "calls", "package", [(None, 4, "1.25", "0")], {}),
        ("graduated", "work", "graduated", [(500, None, "0.05", "3"), (1500, None, "0.03", "0"), (None, None, "0.0113", "0")],
         {"minimum_amount": Decimal(40 * rate)}),
        # What 1,001 units cost is less than what 1,000 do: one late event makes a credit note.
        ("cliff", "work", "volume", [(1000, None, "0.1", "0"), (1500, None, "0.07", "0"), (None, None, "0.01", "0")],
         {"valid_to": changed}),
        ("cliff", "work", "volume", [(700, None, "0.11", "0"), (None, None, "0.02", "0")], {"valid_from": changed}),
        ("region", "by_region", "per_unit", [(None, None, "0.0077", "0")], {}),
        ("peak", "peak", "per_unit", [(None, None, "0.1", "0")], {"maximum_amount": Decimal(15 * rate)}),
        ("users", "users", "stairstep", [(3, None, "0", "5"), (6, None, "0", "9"), (None, None, "0", "20")],
         {"zero_usage": "zero_line"}),
        ("fee", None, "flat", [(None, None, "9.99", "0")], {"billing_timing": "in_advance"}),
    ]  # fmt: skip
    versions: dict[str, int] = {}
    for name, metric, model, tiers, changes in charges:
        code = f"{plan}-{name}"
        versions[code] = versions.get(code, 0) + 1
        key = {"charge_code": code, "price_version": versions[code]}
        row = {
            "plan_code": plan, "metric_code": metric, "charge_name": name, "charge_model": model,
            "billing_timing": "in_arrears", "proration": "by_day", "zero_usage": "no_line", "valid_from": datetime(2024, 1, 1),
        }  # fmt: skip
        seeds["pricing/charges"].append(key | row | changes)
        seeds["pricing/charge_tiers"] += [
            key
            | {"tier_number": number, "up_to": up_to, "package_size": package}
            | {"unit_amount": Decimal(unit) * rate, "flat_amount": Decimal(flat) * rate}
            for number, (up_to, package, unit, flat) in enumerate(tiers, start=1)
        ]


def _terms(seeds: Seeds, customer: str, plan: str, currency: str, rate: int) -> None:
    subscription = f"{customer}-sub"
    seeds["pricing/entitlements"].append(
        {"charge_code": f"{plan}-graduated", "included_quantity": 300, "proration": "by_day", "rollover_limit": 200}
        | {"valid_from": datetime(2024, 1, 1)}
    )
    terms = (
        [("service_period", 190, BEGIN, month_start(9))]
        if currency == "USD"
        else [("term", 400, month_start(2), month_start(4)), ("term", 1300, month_start(5), month_start(11))]
    )
    seeds["pricing/commitments"] += [
        {
            "commitment_code": f"{customer}-commitment-{number}",
            "subscription_id": subscription,
            "currency_code": currency,
        }
        | {"amount": Decimal(amount * rate), "true_up": true_up, "valid_from": start, "valid_to": end}
        for number, (true_up, amount, start, end) in enumerate(terms)
    ]
    seeds["pricing/discounts"].append(
        {"discount_code": f"{customer}-off", "customer_id": customer, "discount_type": "percentage"}
        | {"percentage": Decimal("0.125"), "valid_from": datetime(2024, 1, 1), "valid_to": month_start(8)}
    )
    grants: list[tuple[int, datetime, datetime | None, str | None]] = [
        (30, BEGIN + timedelta(days=11), None, None),
        (20, month_start(2), month_start(3), "month"),
        (2, month_start(3) + timedelta(days=3), month_start(3) + timedelta(days=10), "week"),
    ]
    seeds["pricing/credit_grants"] += [
        {"grant_code": f"{customer}-grant-{number}", "customer_id": customer, "currency_code": currency}
        | {
            "amount": Decimal(amount * rate),
            "priority": 1,
            "cost_basis": 0,
            "created_at": effective,
            "recurrence": recurrence,
        }
        | {"effective_at": effective, "expires_at": expires}
        for number, (amount, effective, expires, recurrence) in enumerate(grants)
    ]


@dataclass
class Usage:
    """Draws events and remembers what counts of those that were delivered: `events`."""

    random: random.Random
    events: list[Event] = field(default_factory=list)
    batches: int = 0

    def draw(self, customer: str, first: datetime, last: datetime) -> Event:
        at = first + (last - first) * self.random.random()
        if self.random.random() < 0.15:
            # On a bound of a month, in one of the time zones.
            bound = datetime(first.year, first.month, 1) + self.random.choice(
                [timedelta(hours=5), timedelta(hours=-5.75)]
            )
            at = min(max(bound - timedelta(microseconds=self.random.randint(0, 1)), first), last)
        return {
            "idempotency_key": f"e-{self.random.randrange(10**12)}",
            "event_type": "work",
            "schema_version": 1,
            "customer_id": customer,
            "occurred_at": at.isoformat(timespec="microseconds") + "Z",
            "properties": {
                "amount": str(Decimal(self.random.randint(0, 20_000)) / 100),
                "user": f"user {self.random.randint(1, 8)}",
                "region": self.random.choice(REGIONS),
            },
        }

    def correct(self, count: int) -> list[Event]:
        """Voids and replacements of what has been delivered, of any age. What counts afterwards is in `events`."""
        corrections: list[Event] = []
        for event in self.random.sample(self.events, min(count, len(self.events))):
            self.events.remove(event)
            correction = {
                **event,
                "idempotency_key": f"c-{event['idempotency_key']}",
                "corrects": event["idempotency_key"],
                "correction": self.random.choice(["void", "replace"]),
            }
            if correction["correction"] == "replace":
                amount = str(Decimal(self.random.randint(0, 20_000)) / 100)
                correction["properties"] = event["properties"] | {"amount": amount}
                self.events.append(correction)
            corrections.append(correction)
        return corrections

    def deliver(
        self, warehouse: Warehouse, received_at: datetime, events: Sequence[Event], others: Sequence[Event] = ()
    ) -> None:
        """Land new events, and others that add none: copies and corrections."""
        self.batches += 1
        for number, event in enumerate([*events, *others]):
            warehouse.insert_delivery(f"b{self.batches}", number, received_at, event)
        self.events += events


@dataclass
class Ledger:
    """What the ledger held when it was last looked at: all of it must still be there."""

    rows: dict[str, set[Row]] = field(default_factory=dict)

    def require_kept(self, warehouse: Warehouse) -> None:
        for table in ("billing_ledger", "billing_runs", "closed_periods", "closed_terms"):
            found = warehouse.query(f"select * from ledger.{table}")
            assert len(set(found)) == len(found), f"ledger.{table} holds a row twice"
            lost = self.rows.get(table, set()) - set(found)
            assert not lost, f"rows of ledger.{table} are changed or gone: {sorted(lost, key=str)[:3]}"
            self.rows[table] = set(found)


def require_conserved(warehouse: Warehouse) -> None:
    """sum(ledger) + pending = rated now, for what is closed: by subscription, charge and service period, so in total too."""
    keys = (
        "customer_id, subscription_id, charge_code, commitment_code, credit_grant_code, line_type, "
        "service_period_start_at, currency_code"
    )
    wrong = warehouse.query(
        f"""
        with signed as (
            select {keys}, original_billing_period as billing_period, amount_minor, amount, event_count
            from ledger.billing_ledger
            union all
            select {keys}, original_billing_period, amount_minor, amount, event_count
            from intermediate.int_pending_adjustments
            union all
            select {keys}, billing_period, -amount_minor, -amount, -event_count
            from marts.fct_rated_lines
            where
                (customer_id, billing_period) in (select (customer_id, billing_period) from ledger.closed_periods)
                or line_id in (select rated_line_id from ledger.billing_ledger)
        )
        select {keys}, billing_period, sum(amount_minor), sum(amount), sum(event_count)
        from signed
        group by all
        having sum(amount_minor) <> 0 or sum(amount) <> 0 or sum(event_count) <> 0
        """
    )
    assert not wrong, f"ledger and pending adjustments are not what is rated: {wrong[:5]}"


def held_lines(warehouse: Warehouse) -> dict[LineKey | CreditKey, int]:
    """Minor units of each line of closed periods: what the ledger has, and the adjustments that are pending."""
    columns = f"{KEY_COLUMNS}, rated_line_id, paid_line_id, credit_grant_code, credit_grant_start_at, amount_minor"
    rows = warehouse.query(
        f"""
        with entries as (
            select {columns} from ledger.billing_ledger
            union all
            select {columns} from intermediate.int_pending_adjustments
        )
        select {columns.replace("amount_minor", "sum(amount_minor)")} from entries group by all
        """
    )
    keys: dict[str, LineKey] = {}
    lines: dict[LineKey | CreditKey, int] = {}
    for row in rows:
        if row[0] != "credit":
            key = line_key(row[:8])
            assert key not in lines, f"two lines are {key}"
            keys[row[8]] = key
            lines[key] = int(row[-1])
    for row in rows:
        if row[0] == "credit":
            credit = CreditKey(row[10], row[11], keys[row[9]])
            assert credit not in lines, f"two credits are {credit}"
            lines[credit] = int(row[-1])
    return lines


def line_key(columns: Row) -> LineKey:
    line_type, subscription_id, charge, commitment, version, dimensions, period_start, price_start = columns
    if line_type in ("minimum", "commitment"):
        version, dimensions, price_start = None, "{}", None
    code = commitment if line_type == "commitment" else charge
    return LineKey(line_type, subscription_id, code, version, dimensions, period_start, price_start)


def require_oracle(
    warehouse: Warehouse, seeds: Seeds, events: Sequence[Event], as_of: datetime, closed: Collection[str]
) -> int:
    """Each line of the closed periods, ledger and pending together, costs what the oracle says of the events until now."""
    line_ids = {
        line_key(row[:8]): row[8]
        for row in warehouse.query(
            f"select {KEY_COLUMNS}, line_id from marts.fct_rated_lines where line_type <> 'credit'"
        )
    }
    expected = Oracle(seeds, MINOR_UNITS, events, as_of, lambda key: line_ids.get(key, repr(key))).expected()
    minor: dict[LineKey | CreditKey, int] = {
        key: int(line.amount * 10 ** MINOR_UNITS[line.currency_code])
        for key, line in expected.lines.items()
        if line.billing_period in closed
    }
    for credit, amount in expected.credits.items():
        line = expected.lines[credit.paid]
        if line.billing_period in closed:
            minor[credit] = int(amount * 10 ** MINOR_UNITS[line.currency_code])
    held = held_lines(warehouse)
    # A line that is rated no more stays in the ledger, with 0 left of it.
    wrong = [
        f"{key}: expected {minor.get(key, 0)}, ledger and pending hold {held.get(key, 0)}"
        for key in sorted(minor.keys() | held.keys(), key=str)
        if minor.get(key, 0) != held.get(key, 0)
    ]
    assert not wrong, f"{len(wrong)} of {len(minor)} lines differ from the oracle:\n" + "\n".join(wrong[:8])
    return sum(map(abs, minor.values()))


def require_reproduced(warehouse: Warehouse, run_id: str | None) -> int:
    """A billing run, or all of them, built again as of its cutoff is what the ledger says; how many runs that were."""
    runs = reproduce_runs(warehouse.settings, run_id, progress=lambda _: None)
    wrong = [run.describe() for run in runs if run.differences]
    assert not wrong, "\n".join(wrong)
    assert sum(run.lines for run in runs) > 0
    return len(runs)


def close_and_die(warehouse: Warehouse, period: str, step: int) -> bool:
    """Close in a process that is killed before its statement `step`; whether it died before it had ended."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_CLOSE, str(warehouse.settings.database), str(warehouse.settings.project), str(step),
         period],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0
