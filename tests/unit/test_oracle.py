"""The oracle of the rating engine itself, pinned by examples that were calculated by hand."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest

from tests.integration.oracle import (
    Expected,
    Oracle,
    Phase,
    Span,
    Subscription,
    allocated,
    percentage_discounted,
    rounded,
    rounded_in_steps,
    service_periods,
    to_utc,
)

JANUARY = datetime(2026, 1, 1)
FEBRUARY = datetime(2026, 2, 1)
MARCH = datetime(2026, 3, 1)
Tier = tuple[Any, str, str]


def event(at: str, value: str = "1", key: str = "", **properties: Any) -> dict[str, Any]:
    """An event of the metric; `at` is a day of January 2026, `15` or `15T12:00:00`, or a whole time."""
    occurred_at = at if at[4:5] == "-" else f"2026-01-{at}"
    return {
        "idempotency_key": key or f"{occurred_at}-{value}-{properties}",
        "event_type": "work",
        "customer_id": "cus",
        "occurred_at": occurred_at + ("" if "T" in occurred_at else "T00:00:00") + "Z",
        "properties": {"value": value} | properties,
    }


def price(model: str, tiers: list[Tier], *, version: int = 1, **changes: Any) -> dict[str, list[dict[str, Any]]]:
    """A price version of the charge `work` with tiers of (up_to, unit_amount, flat_amount)."""
    tier_columns = {name: changes.pop(name) for name in list(changes) if name in ("package_size", "dimension_1_value")}
    key = {"charge_code": changes.pop("charge_code", "work"), "price_version": version}
    charge: dict[str, Any] = {"plan_code": "plan", "metric_code": "work", "charge_model": model, "proration": "by_day"}
    charge |= {"zero_usage": "no_line", "valid_from": JANUARY}
    return {
        "pricing/charges": [key | charge | changes],
        "pricing/charge_tiers": [
            key | tier_columns | {"tier_number": number, "up_to": up_to, "unit_amount": unit, "flat_amount": flat}
            for number, (up_to, unit, flat) in enumerate(tiers, start=1)
        ],
    }


def rate(
    *parts: dict[str, list[dict[str, Any]]],
    events: list[dict[str, Any]],
    metric: dict[str, Any] | None = None,
    subscription: dict[str, Any] | None = None,
    as_of: datetime = datetime(2026, 1, 31),
) -> Expected:
    """Rate a book of one metric (`sum` of value), one monthly plan in USD and one subscription (UTC, from January on)."""
    seeds: dict[str, list[dict[str, Any]]] = {
        "catalog/billable_metrics": [
            {"metric_code": "work", "event_type": "work", "aggregation": "sum", "property_name": "value"}
            | (metric or {})
        ],
        "pricing/plans": [{"plan_code": "plan", "billing_interval": "month", "currency_code": "USD"}],
        "accounts/subscriptions": [
            {
                "subscription_id": "sub",
                "customer_id": "cus",
                "plan_code": "plan",
                "time_zone": "UTC",
                "started_at": JANUARY,
            }
            | (subscription or {})
        ],
    }
    for part in parts:
        for seed, rows in part.items():
            seeds[seed] = seeds.get(seed, []) + rows
    return Oracle(seeds, {"USD": 2}, events, as_of).expected()


def amounts(expected: Expected) -> list[str]:
    """Amounts of the lines in order of time, unrounded where that differs: as text that is easily read."""
    lines = sorted(
        expected.lines.values(), key=lambda line: (line.period.start, line.key.price_start_at or line.due_at)
    )
    return [str(Decimal(line.amount.numerator) / line.amount.denominator) for line in lines]


def test_rounding_is_half_away_from_zero() -> None:
    assert rounded(Fraction("2.345"), 2) == Fraction("2.35")
    assert rounded(Fraction("-2.345"), 2) == Fraction("-2.35")
    assert rounded(Fraction("2.3449999999"), 2) == Fraction("2.34")
    assert rounded_in_steps(Fraction(1201), "ceil", -2) == 1300
    assert rounded_in_steps(Fraction(-5, 2), "half_up", 0) == -3
    assert rounded_in_steps(Fraction("0.19"), "floor", 1) == Fraction("0.1")


@pytest.mark.parametrize(("units", "amount"), [("10", "10"), ("10.5", "12.25"), ("20", "17"), ("21", "17.1")])
def test_graduated_tiers_include_their_upper_bound(units: str, amount: str) -> None:
    """10 x 1.00; above 10 a flat 2.00 and 0.50 each; above 20 0.10 each."""
    book = price("graduated", [("10", "1", "0"), ("20", "0.5", "2"), (None, "0.1", "0")])
    assert amounts(rate(book, events=[event("05", units)])) == [amount]


@pytest.mark.parametrize(("units", "amount"), [("100", "10"), ("101", "5.05")])
def test_volume_prices_all_units_by_the_tier_of_the_total(units: str, amount: str) -> None:
    book = price("volume", [("100", "0.1", "0"), (None, "0.05", "0")])
    assert amounts(rate(book, events=[event("05", units)])) == [amount]


def test_packages_are_counted_after_the_entitlement_and_through_a_change_of_price() -> None:
    """10 units, 3 included: 7 are 2 packages of 4. The first begins before the change of price, the second after it."""
    entitlement = {
        "pricing/entitlements": [
            {"charge_code": "work", "included_quantity": 3, "valid_from": JANUARY, "proration": "by_day"}
        ]
    }
    change = datetime(2026, 1, 10, 0, 30)
    expected = rate(
        price("package", [(None, "1", "0")], package_size=4, valid_to=change),
        price("package", [(None, "5", "0")], package_size=4, valid_from=change, version=2),
        entitlement,
        events=[event("05", "5"), event("10T00:29:59.999999", "1"), event("10T00:30:00", "4")],
    )
    assert amounts(expected) == ["1", "5"]
    first, second = expected.lines.values()
    assert [first.billable_quantity, first.included_quantity_used] == [Fraction(3), Fraction(3)]
    assert [second.billable_quantity, second.included_quantity_used] == [Fraction(4), Fraction(0)]


def test_percentage_rates_each_event_after_what_is_free() -> None:
    """2.9 % + 0.30 with 2 free events of together 100: 80 is free, 60 is free up to 20, 10 is the third event."""
    terms = {
        "pricing/percentage_terms": [
            {
                "charge_code": "work",
                "price_version": 1,
                "free_events": 2,
                "free_amount": 100,
                "event_fixed_amount": "0.3",
                "event_minimum_amount": "0.6",
                "event_maximum_amount": "1.4",
            }
        ]
    }
    events = [event("05", "80"), event("06", "60"), event("07", "10")]
    (line,) = rate(price("percentage", [(None, "0.029", "0")]), terms, events=events).lines.values()
    # 0 + min(0.029 x 40 + 0.30, 1.40) + max(0.029 x 10 + 0.30, 0.60)
    assert line.unrounded_amount == Fraction("1.4") + Fraction("0.6")
    assert line.included_quantity_used == 100
    assert line.billable_quantity == 50


def test_weighted_sum_is_the_level_over_the_time_of_the_full_period() -> None:
    """10 from before the subscription on, 31 more for the last of 31 days, 6 less for its last half: 10 + 1 - 3/31."""
    events = [event("2025-12-24T00:00:00", "10"), event("31", "31"), event("31T12:00:00", "-6")]
    expected = rate(price("per_unit", [(None, "1", "0")]), events=events, metric={"aggregation": "weighted_sum"})
    (quantity, event_count), *_ = expected.usage.values()
    assert quantity == rounded(Fraction(11) - Fraction(3, 31), 9)
    assert event_count == 2
    assert amounts(expected) == ["10.9"]


def test_the_time_of_a_pause_does_not_count_for_a_weighted_sum() -> None:
    """A level of 31, set in the pause from the 2nd to the 22nd, for the last 10 of 31 days."""
    expected = Oracle(
        {
            "catalog/billable_metrics": [
                {
                    "metric_code": "work",
                    "event_type": "work",
                    "aggregation": "weighted_sum",
                    "property_name": "value",
                }
            ],
            "pricing/plans": [{"plan_code": "plan", "billing_interval": "month", "currency_code": "USD"}],
            "accounts/subscriptions": [
                {"subscription_id": "sub", "customer_id": "cus", "plan_code": "plan", "time_zone": "UTC"} | phase
                for phase in (
                    {"started_at": JANUARY, "ended_at": datetime(2026, 1, 2)},
                    {"started_at": datetime(2026, 1, 22)},
                )
            ],
            **price("per_unit", [(None, "1", "0")]),
        },
        {"USD": 2},
        [event("05", "31")],
        datetime(2026, 1, 31),
    ).expected()
    assert amounts(expected) == ["10"]
    assert [count for _, count in expected.usage.values()] == [0]


def test_a_gauge_is_shared_out_by_days() -> None:
    """The latest value 31 is rated whole by each version, for 10 and for 21 of 31 days."""
    change = datetime(2026, 1, 11)
    expected = rate(
        price("per_unit", [(None, "1", "0")], valid_to=change),
        price("per_unit", [(None, "2", "0")], valid_from=change, version=2),
        events=[event("20", "99"), event("25", "31"), event("25", "30")],
        metric={"aggregation": "latest"},
    )
    assert amounts(expected) == ["10", "42"]
    assert [len(line.events) for line in expected.lines.values()] == [0, 3]


def test_windows_without_usage_count_as_zero() -> None:
    """The highest of each day, averaged over the 31 days: (5 + 7) / 31."""
    expected = rate(
        price("per_unit", [(None, "1", "0")]),
        events=[event("05T10:00:00", "5"), event("05T11:00:00", "3"), event("06", "7")],
        metric={"aggregation": "max", "metering_period": "day", "period_aggregation": "average"},
    )
    assert [quantity for quantity, _ in expected.usage.values()] == [Fraction("0.387096774")]


def test_a_flat_fee_is_prorated_by_days_of_the_full_period() -> None:
    """31.00 from the 11th on, 62.00 from the 21st on: 10 + 22 of 31 days."""
    change = datetime(2026, 1, 21)
    expected = rate(
        price("flat", [(None, "31", "0")], metric_code=None, valid_to=change),
        price("flat", [(None, "62", "0")], metric_code=None, valid_from=change, version=2),
        subscription={"started_at": datetime(2026, 1, 11, 18)},
        events=[],
    )
    assert amounts(expected) == ["10", "22"]


def test_tiers_go_by_the_first_given_dimension() -> None:
    """The row for eu at position 1 goes before the one for gpu at position 2; us and cpu fit none and are unbilled."""
    rows = [("eu", None, "1"), (None, "gpu", "2")]
    tiers = [
        {"charge_code": "work", "price_version": 1, "dimension_1_value": region, "dimension_2_value": kind}
        | {"tier_number": 1, "unit_amount": unit}
        for region, kind, unit in rows
    ]
    dimensions = [
        {"metric_code": "work", "purpose": "pricing", "dimension_position": position, "property_name": name}
        for position, name in ((1, "region"), (2, "kind"))
    ]
    book = {
        "pricing/charges": price("matrix", [])["pricing/charges"],
        "pricing/charge_tiers": tiers,
        "catalog/metric_dimensions": dimensions,
    }
    events = [event("05", region=region, kind=kind) for region in ("eu", "us") for kind in ("gpu", "cpu")]
    events.append(event("06", kind="gpu"))
    expected = rate(book, events=events)
    assert {line.key.dimensions: int(line.amount) for line in expected.lines.values()} == {
        '{"region": "eu", "kind": "gpu"}': 1,
        '{"region": "eu", "kind": "cpu"}': 1,
        '{"region": "us", "kind": "gpu"}': 2,
        '{"region": null, "kind": "gpu"}': 2,
    }
    assert expected.event_counts == {("work", "cus"): 5}


def test_zero_usage_with_a_flat_amount_at_once() -> None:
    """The flat 5.00 of the first tier is due without usage, and with usage inside the entitlement."""
    book = price("graduated", [(10, "1", "5"), (None, "1", "7")], zero_usage="first_tier_flat")
    assert amounts(rate(book, events=[])) == ["5"]
    assert amounts(rate(book, events=[event("05", "0")])) == ["5"]
    assert amounts(rate(book, events=[event("05", "11")])) == ["23"]


def test_unused_quantity_is_carried_over_up_to_the_limit() -> None:
    """10 included, 4 used: min(5, 6) go over; 15 are free in February, of which 12 are used; 3 go over to March."""
    entitlement = {
        "charge_code": "work",
        "included_quantity": 10,
        "proration": "by_day",
        "rollover_limit": 5,
        "valid_from": JANUARY,
    }
    expected = rate(
        price("per_unit", [(None, "1", "0")]),
        {"pricing/entitlements": [entitlement]},
        events=[event("05", "4"), event("2026-02-05T00:00:00", "12"), event("2026-03-05T00:00:00", "14")],
        as_of=datetime(2026, 3, 31),
    )
    assert amounts(expected) == ["0", "0", "1"]


def test_fixed_discounts_go_by_largest_remainders() -> None:
    assert allocated(100, [333, 333, 334], ["a", "b", "c"]) == [33, 33, 34]
    assert allocated(2, [1, 1, 1], ["c", "a", "b"]) == [0, 1, 1]
    assert allocated(9, [1, 0, 3], ["a", "b", "c"]) == [1, 0, 3]


def test_a_fixed_discount_leaves_three_equal_lines() -> None:
    """3.33, 3.33 and 3.34 less 1.00 are 3.00 each."""
    charges = [price("per_unit", [(None, unit, "0")], charge_code=unit) for unit in ("3.33", "3.330", "3.34")]
    discount = {
        "discount_code": "one",
        "plan_code": "plan",
        "discount_type": "fixed",
        "amount": 1,
        "valid_from": JANUARY,
    }
    assert amounts(rate(*charges, {"pricing/discounts": [discount]}, events=[event("05")])) == ["3", "3", "3"]


def test_percentage_discounts_apply_in_turn() -> None:
    assert percentage_discounted(Fraction(10), [Fraction("0.1"), Fraction("0.5")]) == Fraction("4.5")


def test_maximum_and_minimum_of_a_charge() -> None:
    """20.00 are cut to 15.00, 15 of 31 days of 31.00; without usage 15.00 is due."""
    book = price("per_unit", [(None, "1", "0")], minimum_amount=31, maximum_amount=31)
    half = {"started_at": JANUARY, "ended_at": datetime(2026, 1, 16, 12)}
    (line,) = rate(book, events=[event("05", "20")], subscription=half).lines.values()
    assert (line.key.line_type, int(line.amount), int(line.maximum_reduction_amount)) == ("usage", 15, 5)
    (line,) = rate(book, events=[], subscription=half).lines.values()
    assert (line.key.line_type, int(line.amount)) == ("minimum", 15)


def test_commitments_are_topped_up_in_the_period_and_over_a_term() -> None:
    """10 a month against 4 and 12; 30 over two months against the same 16, due in February."""
    key = {"commitment_code": "work", "subscription_id": "sub", "currency_code": "USD", "valid_from": JANUARY}
    usage = [event("05", "4"), event("2026-02-05T00:00:00", "12")]
    book = price("per_unit", [(None, "1", "0")])
    by_period = rate(
        book,
        {"pricing/commitments": [key | {"amount": 10, "true_up": "service_period"}]},
        events=usage,
        as_of=datetime(2026, 2, 10),
    )
    by_term = rate(
        book,
        {"pricing/commitments": [key | {"amount": 30, "true_up": "term", "valid_to": MARCH}]},
        events=usage,
        as_of=datetime(2026, 2, 10),
    )
    for expected, start, amount in ((by_period, JANUARY, 6), (by_term, FEBRUARY, 14)):
        (line,) = (line for line in expected.lines.values() if line.key.line_type == "commitment")
        assert (line.period.start, int(line.amount)) == (start, amount)


def grant(code: str, amount: int, **changes: Any) -> dict[str, Any]:
    return {
        "grant_code": code,
        "customer_id": "cus",
        "currency_code": "USD",
        "amount": amount,
        "priority": 1,
        "cost_basis": Decimal(1),
        "created_at": JANUARY,
        "effective_at": JANUARY,
    } | changes


def test_credits_burn_by_priority_and_expiry_on_what_was_used_in_their_time() -> None:
    """10 used on the 5th, 10 on the 20th. `last` has priority 2; `soon` expires on the 10th, `late` never."""
    expected = rate(
        price("per_unit", [(None, "1", "0")]),
        {
            "pricing/credit_grants": [
                grant("last", 100, priority=2),
                grant("late", 8),
                grant("soon", 7, expires_at=datetime(2026, 1, 10)),
            ]
        },
        events=[event("05", "10"), event("20", "10")],
    )
    # On the slice before the 10th `soon` pays 7 and `late` 3; the other 5 of `late` and 5 of `last` pay the second.
    assert {key.grant_code: int(amount) for key, amount in expected.credits.items()} == {
        "soon": -7,
        "late": -8,
        "last": -5,
    }


def test_a_recurring_grant_of_a_charge_pays_that_charge_only() -> None:
    """5 a week from January 1st on; used are 3 in the first week and 9 in the second, of each of two charges."""
    expected = rate(
        price("per_unit", [(None, "1", "0")]),
        price("per_unit", [(None, "1", "0")], charge_code="other"),
        {
            "pricing/credit_grants": [grant("weekly", 5, recurrence="week", expires_at=datetime(2026, 1, 20))],
            "pricing/credit_grant_charges": [{"grant_code": "weekly", "charge_code": "work"}],
        },
        events=[event("05", "3"), event("08", "9")],
    )
    paid = {(key.paid.code, key.credit_grant_start_at.day): int(amount) for key, amount in expected.credits.items()}
    assert paid == {("work", 1): -3, ("work", 8): -5}


def test_a_lines_cents_are_shared_out_by_rounding_the_running_total() -> None:
    """0.05 in three equal thirds: running totals 0.0166, 0.0333 and 0.05 are 2, 3 and 5 cents."""
    cuts = [datetime(2026, 1, 10), datetime(2026, 1, 20)]
    grants = [
        grant("a", 1, expires_at=cuts[0]),
        grant("b", 1, effective_at=cuts[0], expires_at=cuts[1]),
        grant("c", 1, effective_at=cuts[1]),
    ]
    events = [event(day) for day in ("05", "15", "25")]
    book = price("per_unit", [(None, "0.016666666667", "0")])
    expected = rate(book, {"pricing/credit_grants": grants}, events=events)
    assert {key.grant_code: amount * 100 for key, amount in expected.credits.items()} == {"a": -2, "b": -1, "c": -2}


@pytest.mark.parametrize(
    ("zone", "wall_clock", "instant"),
    [
        ("America/New_York", datetime(2026, 11, 1, 0, 59, 59), datetime(2026, 11, 1, 4, 59, 59)),
        ("America/New_York", datetime(2026, 11, 1, 1, 30), datetime(2026, 11, 1, 6, 30)),
        ("America/New_York", datetime(2026, 11, 1, 2), datetime(2026, 11, 1, 7)),
        ("America/New_York", datetime(2026, 3, 8, 2, 30), datetime(2026, 3, 8, 7, 30)),
        ("America/New_York", datetime(2026, 3, 8, 3), datetime(2026, 3, 8, 7)),
        ("Australia/Lord_Howe", datetime(2026, 4, 5, 1, 45), datetime(2026, 4, 4, 15, 15)),
    ],
)
def test_wall_clocks_that_occur_twice_or_never_mean_one_instant(
    zone: str, wall_clock: datetime, instant: datetime
) -> None:
    assert to_utc(wall_clock, ZoneInfo(zone)) == instant
    (in_duckdb,) = duckdb.execute("select timezone('UTC', timezone(?, ?))", [zone, wall_clock]).fetchall()
    assert in_duckdb == (instant,)


def test_periods_anchored_on_the_31st_start_on_the_last_day_of_short_months() -> None:
    zone = ZoneInfo("America/New_York")
    phase = Phase("plan", Span(datetime(2026, 1, 15, 12), datetime(2026, 3, 31, 3, 59)))
    subscription = Subscription("sub", "cus", zone, date(2026, 1, 31), (phase,))
    periods = service_periods(subscription, "plan", 1, datetime(2026, 6, 1))
    assert [(period.start, period.end) for period in periods] == [
        (datetime(2026, 1, 15, 12), datetime(2026, 1, 31, 5)),
        (datetime(2026, 1, 31, 5), datetime(2026, 2, 28, 5)),
        (datetime(2026, 2, 28, 5), datetime(2026, 3, 31, 3, 59)),
    ]
    # December 31st to January 31st; of the last one the 30th of March has begun.
    assert [(period.full_days, period.active_days) for period in periods] == [(31, 16), (28, 28), (31, 30)]


def test_calendar_quarters_and_years() -> None:
    phase = Phase("plan", Span(datetime(2025, 11, 20), datetime(2026, 5, 1)))
    subscription = Subscription("sub", "cus", ZoneInfo("UTC"), None, (phase,))
    quarters = service_periods(subscription, "plan", 3, datetime(2026, 4, 1))
    assert [period.full.start for period in quarters] == [
        datetime(2025, 10, 1),
        datetime(2026, 1, 1),
        datetime(2026, 4, 1),
    ]
    years = service_periods(subscription, "plan", 12, datetime(2026, 4, 1))
    assert [period.full.start for period in years] == [datetime(2025, 1, 1), datetime(2026, 1, 1)]
