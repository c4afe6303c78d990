"""Rating against an oracle: a second implementation in plain Python, written from the rules and sharing no code with the models.

A price book and events are drawn at random, with events on every boundary; invoice lines must be equal to the last digit.
"""

from __future__ import annotations

import csv
import json
import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal, localcontext
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.integration.conftest import Warehouse

ZONES = ["UTC", "America/New_York", "Asia/Kolkata", "Australia/Adelaide", "Asia/Kathmandu", "Pacific/Auckland"]
MINOR_UNITS = {"USD": 2, "JPY": 0, "KWD": 3}
METRICS = ["requests", "context_tokens", "generated_tokens", "longest_context", "active_users", "session_seconds"]
MODELS = ["per_unit", "graduated", "volume", "package"]
START = datetime(2026, 8, 1)
CUSTOMERS = 20


@dataclass
class Price:
    version: int
    model: str
    package_size: Decimal | None
    valid_from: datetime
    valid_to: datetime | None
    # (up_to or None, unit amount, flat amount), lowest first
    tiers: list[tuple[Decimal | None, Decimal, Decimal]]


@dataclass
class Charge:
    code: str
    metric: str
    included: Decimal
    prices: list[Price] = field(default_factory=list)


@dataclass
class Account:
    customer: str
    zone: str
    currency: str
    charges: list[Charge]


def draw_tiers(generator: random.Random, model: str, scale: int) -> list[tuple[Decimal | None, Decimal, Decimal]]:
    count = 1 if model in ("per_unit", "package") else generator.randint(1, 4)
    bounds = sorted(
        {Decimal(generator.randint(1, 20 * scale)) / generator.choice([1, 2, 10]) for _ in range(count - 1)}
    )
    return [
        (
            bound,
            Decimal(generator.randint(0, 10**6)).scaleb(-generator.choice([2, 4, 7, 10])),
            Decimal(generator.choice([0, 0, 1, 250])).scaleb(-2),
        )
        for bound in [*bounds, None]
    ]


def draw_account(generator: random.Random, number: int) -> Account:
    charges = []
    for metric in METRICS:
        scale = {"context_tokens": 1_000, "generated_tokens": 100, "longest_context": 50, "session_seconds": 20}.get(
            metric, 1
        )
        charge = Charge(
            f"c{number:02d}-{metric}",
            metric,
            Decimal(generator.choice([0, 0, generator.randint(1, 5 * scale)])),
        )
        changes = sorted(
            {
                datetime(
                    2026, generator.choice([9, 10]), generator.randint(1, 28), generator.randint(0, 23), minute, second
                )
                for minute, second in [
                    generator.choice([(0, 0), (30, 0), (7, 33)]) for _ in range(generator.randint(0, 2))
                ]
            }
        )
        starts = [datetime(2026, 1, 1), *changes]
        for version, (start, end) in enumerate(zip(starts, [*changes, None], strict=True), start=1):
            model = generator.choice(MODELS)
            size = Decimal(generator.choice([1, 3, 10, 100])) if model == "package" else None
            charge.prices.append(Price(version, model, size, start, end, draw_tiers(generator, model, scale)))
        charges.append(charge)
    return Account(f"cus_{number:03d}", generator.choice(ZONES), generator.choice(list(MINOR_UNITS)), charges)


def to_utc(local: datetime, zone: str) -> datetime:
    return local.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC).replace(tzinfo=None)


def draw_events(generator: random.Random, account: Account) -> list[dict[str, Any]]:
    moments = [START + timedelta(seconds=generator.randint(1, 90 * 86_400)) for _ in range(generator.randint(5, 60))]
    boundaries = [to_utc(datetime(2026, month, 1), account.zone) for month in (9, 10)]
    boundaries += [
        to_utc(price.valid_from, account.zone)
        for charge in account.charges
        for price in charge.prices
        if price.version > 1
    ]
    for boundary in boundaries:
        moments += [boundary, boundary - timedelta(microseconds=1)]
    events = []
    for number, moment in enumerate(moments):
        event: dict[str, Any] = {
            "idempotency_key": f"{account.customer}-{number}",
            "schema_version": 1,
            "customer_id": account.customer,
            "occurred_at": moment.isoformat(timespec="microseconds") + "Z",
        }
        if generator.random() < 0.7:
            event["event_type"] = "llm_request"
            event["properties"] = {
                "service": generator.choice(["code", "conversation"]),
                "context_tokens": generator.randint(0, 3_000),
                "generated_tokens": generator.randint(0, 300),
            }
        else:
            event["event_type"] = "assistant_session"
            event["properties"] = {
                "user_id": f"user-{generator.randint(1, 9)}",
                "duration_seconds": str(Decimal(generator.randint(0, 10**11)).scaleb(-9)),
            }
        events.append(event)
    return events


Line = tuple[str, int, str, str]


def oracle_quantity(metric: str, events: list[dict[str, Any]]) -> Decimal:
    properties = [event["properties"] for event in events]
    match metric:
        case "requests":
            return Decimal(len(events))
        case "context_tokens" | "generated_tokens":
            return sum((Decimal(values[metric]) for values in properties), Decimal(0))
        case "session_seconds":
            return sum((Decimal(values["duration_seconds"]) for values in properties), Decimal(0))
        case "longest_context":
            return max((Decimal(values["context_tokens"]) for values in properties), default=Decimal(0))
        case "active_users":
            return Decimal(len({values["user_id"] for values in properties}))
    raise AssertionError(metric)


def oracle_amount(price: Price, before: Decimal, through: Decimal, total: Decimal) -> Decimal:
    """What the units from `before` to `through` of a period with `total` units cost; all after the entitlement."""
    if price.package_size is not None:
        before, through, total = (
            (quantity / price.package_size).to_integral_value(ROUND_CEILING) for quantity in (before, through, total)
        )
    amount = Decimal(0)
    floor = Decimal(0)
    for up_to, unit_amount, flat_amount in price.tiers:
        ceiling = through if up_to is None else up_to
        if price.model == "volume":
            if floor < total and (up_to is None or total <= up_to):
                amount += (through - before) * unit_amount
                if before == 0 and through > 0:
                    amount += flat_amount
        else:
            amount += max(min(through, ceiling) - max(before, floor), Decimal(0)) * unit_amount
            if before <= floor < through:
                amount += flat_amount
        if up_to is not None:
            floor = up_to
    return amount


def oracle_lines(account: Account, events: list[dict[str, Any]]) -> dict[Line, tuple[Decimal, Decimal, int]]:
    """Unrounded amount, rounded amount and number of events of each line."""
    lines: dict[Line, tuple[Decimal, Decimal, int]] = {}
    zone = ZoneInfo(account.zone)
    for charge in account.charges:
        sessions = charge.metric in ("active_users", "session_seconds")
        groups: dict[tuple[str, str], list[tuple[datetime, dict[str, Any]]]] = defaultdict(list)
        for event in events:
            if (event["event_type"] == "assistant_session") != sessions:
                continue
            instant = datetime.fromisoformat(event["occurred_at"])
            local = instant.astimezone(zone)
            service = event["properties"].get("service")
            dimensions = json.dumps({"service": service}) if charge.metric == "generated_tokens" else "{}"
            groups[f"{local:%Y-%m}", dimensions].append((instant.replace(tzinfo=None), event))
        for (period, dimensions), group in groups.items():
            total = max(oracle_quantity(charge.metric, [event for _, event in group]) - charge.included, Decimal(0))
            for price in charge.prices:
                start = to_utc(price.valid_from, account.zone)
                end = datetime.max if price.valid_to is None else to_utc(price.valid_to, account.zone)
                inside = [event for instant, event in group if start <= instant < end]
                if not inside:
                    continue
                bounds = []
                for bound in (start, end):
                    quantity = oracle_quantity(charge.metric, [event for instant, event in group if instant < bound])
                    bounds.append(max(quantity - charge.included, Decimal(0)))
                amount = oracle_amount(price, bounds[0], bounds[1], total)
                rounded = amount.quantize(Decimal(1).scaleb(-MINOR_UNITS[account.currency]), ROUND_HALF_UP)
                lines[charge.code, price.version, dimensions, period] = (amount, rounded, len(inside))
    return lines


def write_seed(project: Path, seed: str, rows: list[dict[str, Any]]) -> None:
    with (project / "seeds" / seed).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_price_book(project: Path, accounts: list[Account]) -> None:
    plans, charges, tiers, entitlements, subscriptions = [], [], [], [], []
    for account in accounts:
        plan = f"plan-{account.customer}"
        plans.append({"plan_code": plan, "plan_name": plan, "currency_code": account.currency, "description": ""})
        subscriptions.append(
            {
                "subscription_id": f"sub-{account.customer}",
                "customer_id": account.customer,
                "plan_code": plan,
                "time_zone": account.zone,
                "started_at": "2026-07-01 00:00:00",
                "ended_at": "",
            }
        )
        for charge in account.charges:
            if charge.included:
                entitlements.append(
                    {
                        "charge_code": charge.code,
                        "included_quantity": charge.included,
                        "valid_from": "2026-01-01 00:00:00",
                        "valid_to": "",
                    }
                )
            for price in charge.prices:
                key = {"charge_code": charge.code, "price_version": price.version}
                charges.append(
                    key
                    | {
                        "plan_code": plan,
                        "metric_code": charge.metric,
                        "charge_name": charge.code,
                        "charge_model": price.model,
                        "package_size": price.package_size,
                        "valid_from": price.valid_from,
                        "valid_to": price.valid_to,
                    }
                )
                tiers += [
                    key
                    | {
                        "tier_number": number,
                        "up_to": up_to,
                        "unit_amount": format(unit_amount, "f"),
                        "flat_amount": format(flat_amount, "f"),
                    }
                    for number, (up_to, unit_amount, flat_amount) in enumerate(price.tiers, start=1)
                ]
    write_seed(project, "pricing/plans.csv", plans)
    write_seed(project, "pricing/charges.csv", charges)
    write_seed(project, "pricing/charge_tiers.csv", tiers)
    write_seed(project, "pricing/entitlements.csv", entitlements)
    write_seed(project, "accounts/subscriptions.csv", subscriptions)


@pytest.mark.parametrize("seed", [1, 2])
def test_invoice_lines_equal_the_oracle(warehouse_of_copy: Warehouse, project_copy: Path, seed: int) -> None:
    generator = random.Random(seed)
    accounts = [draw_account(generator, number) for number in range(CUSTOMERS)]
    write_price_book(project_copy, accounts)
    expected: dict[Line, tuple[Decimal, Decimal, int]] = {}
    events: list[dict[str, Any]] = []
    with localcontext() as context:
        context.prec = 60
        for account in accounts:
            own = draw_events(generator, account)
            events += own
            expected |= oracle_lines(account, own)
    generator.shuffle(events)
    warehouse_of_copy.land_events(events)
    warehouse_of_copy.build()
    assert warehouse_of_copy.outcome_counts() == {"accepted": len(events), "duplicate": 0, "rejected": 0}
    rows = warehouse_of_copy.query(
        "select charge_code, price_version, dimensions, billing_period, unrounded_amount, amount, event_count "
        "from marts.fct_invoice_lines"
    )
    actual = {(row[0], row[1], row[2], row[3]): (row[4], row[5], row[6]) for row in rows}
    assert len(actual) == len(rows)
    assert {line: (expected.get(line), actual.get(line)) for line in expected.keys() | actual.keys()
            if expected.get(line) != actual.get(line)} == {}  # fmt: skip
    assert len(actual) > 500
