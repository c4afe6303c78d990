"""Another system's billed amounts, made from the demo's lines, with one difference of each kind in them."""

from __future__ import annotations

import csv
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from orchestration.lib.demo_events import write_demo_data
from orchestration.lib.landing import SHADOW_FIELDS, land_shadow_billing
from orchestration.lib.shadow import describe_comparison, list_comparisons
from orchestration.lib.warehouse import connect
from tests.integration.conftest import Warehouse

CENT = Decimal("0.01")
CUSTOMERS = ("cus_000", "cus_001", "cus_002", "cus_004", "cus_006", "cus_011")
Rows = dict[tuple[str, str], dict[str, str]]


def cents(amount: Decimal) -> str:
    return str(amount.quantize(CENT, ROUND_HALF_UP))


def billed_elsewhere(warehouse: Warehouse) -> Rows:
    """What the demo bills for September, by customer and charge, as another system would hand it over."""
    lines = warehouse.query(
        "select customer_id, charge_code, currency_code, sum(amount), sum(event_count), "
        "sum(metered_quantity) from marts.fct_rated_lines where billing_period = '2026-09' "
        "and line_type in ('usage', 'flat', 'minimum') group by all order by all"
    )
    return {
        (customer, charge): {
            "system": "other_system",
            "customer_id": customer,
            "billing_period": "2026-09",
            "charge_code": charge,
            "currency_code": currency,
            "quantity": "" if charge.endswith("-platform") else str(quantity),
            "event_count": "" if charge.endswith("-platform") else str(events),
            "amount": str(amount),
        }
        for customer, charge, currency, amount, events, quantity in lines
        if customer in CUSTOMERS
    }


def write(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, SHADOW_FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
    return path


def test_each_kind_of_difference_is_found(warehouse: Warehouse, tmp_path: Path) -> None:
    warehouse.land(*write_demo_data(tmp_path / "demo").event_files)
    warehouse.build_models()
    rows = billed_elsewhere(warehouse)
    everything = len(rows)

    # Each expectation is worked out from the deliveries and the price book, not from the models under test.
    rows["cus_000", "usd-context"]["amount"] = "7.27"  # one cent more
    ((copies, seconds),) = warehouse.query(
        "with deliveries as (select idempotency_key, cast(properties ->> '$.duration_seconds' as decimal(18, 9)) as seconds "
        "from raw.usage_events where customer_id = 'cus_000' and event_type = 'assistant_session' "
        "and cast(occurred_at as timestamp) >= '2026-09-01' and cast(occurred_at as timestamp) < '2026-10-01') "
        "select count(*) - count(distinct idempotency_key), sum(seconds) from deliveries"
    )
    assert copies > 0
    rows["cus_000", "usd-sessions"] |= {"quantity": str(seconds), "amount": cents(seconds * Decimal("0.0001"))}
    ((in_utc, seconds_in_utc),) = warehouse.query(
        "select count(distinct idempotency_key), sum(seconds) from (select distinct idempotency_key, "
        "cast(properties ->> '$.duration_seconds' as decimal(18, 9)) as seconds from raw.usage_events "
        "where customer_id = 'cus_006' and event_type = 'assistant_session' "
        "and cast(occurred_at as timestamp) >= '2026-09-01' and cast(occurred_at as timestamp) < '2026-10-01')"
    )
    rows["cus_006", "usd-sessions"] |= {
        "quantity": str(seconds_in_utc),
        "event_count": str(in_utc),
        "amount": cents(seconds_in_utc * Decimal("0.0001")),
    }
    # 1,519,520 billable tokens, all at the price of the second tier.
    rows["cus_002", "usd-context"]["amount"] = cents(1_519_520 * Decimal("0.000002"))
    rows["cus_004", "jpy-users"]["amount"] = "3500"
    rows["cus_001", "usd-sessions"] |= {"quantity": "70000", "event_count": "250", "amount": "7.00"}
    rows["cus_006", "usd-users"] |= {"quantity": "", "event_count": "", "amount": "12.00"}
    # From the 15th on the customer has no subscription here.
    ((unbilled,),) = warehouse.query(
        "select count(distinct idempotency_key) from raw.usage_events where customer_id = 'cus_011' and event_type = 'llm_request' "
        "and cast(occurred_at as timestamp) >= '2026-09-15' and cast(occurred_at as timestamp) < '2026-10-01'"
    )
    requests = Decimal(rows["cus_011", "usd-requests"]["quantity"]) + unbilled
    rows["cus_011", "usd-requests"] |= {
        "quantity": str(requests),
        "event_count": str(requests.to_integral_value()),
        "amount": "1",
    }
    rows["cus_900", "usd-requests"] = rows["cus_000", "usd-requests"] | {"customer_id": "cus_900"}
    rows["cus_001", "seats"] = rows["cus_001", "usd-users"] | {"charge_code": "seats"}
    del rows["cus_001", "usd-users"]
    del rows["cus_002", "usd-requests"]
    rows["cus_002", "usd-users"]["currency_code"] = "EUR"
    rows["cus_005", ""] = {
        "system": "other_system", "customer_id": "cus_005", "billing_period": "2026-09", "currency_code": "KWD", "amount": "9.999"
    }  # fmt: skip
    path = write(tmp_path / "billed.csv", rows)
    with connect(warehouse.settings) as connection:
        assert land_shadow_billing(connection, path, progress=lambda _: None) == len(rows)
    warehouse.build_models()

    found = {
        (customer, charge, currency): (classification, side, flagged)
        for customer, charge, currency, classification, side, flagged in warehouse.query(
            "select customer_id, coalesce(charge_code, ''), currency_code, classification, missing_side, is_flagged "
            "from marts.fct_shadow_billing"
        )
    }
    expected = {
        ("cus_000", "usd-context", "USD"): ("rounding", None, False),
        ("cus_000", "usd-sessions", "USD"): ("duplicates", None, True),
        ("cus_006", "usd-sessions", "USD"): ("time_zone", None, False),
        ("cus_001", "seats", "USD"): ("unmapped", "ours", True),
        ("cus_002", "usd-context", "USD"): ("tier_edge", None, True),
        ("cus_002", "usd-requests", "USD"): ("missing_events", "theirs", True),
        ("cus_002", "usd-users", "EUR"): ("unmapped", "ours", True),
        ("cus_002", "usd-users", "USD"): ("unmapped", "theirs", True),
        ("cus_004", "jpy-users", "JPY"): ("price", None, True),
        ("cus_005", "", "KWD"): ("unexplained", None, True),
        ("cus_001", "usd-sessions", "USD"): ("missing_events", "theirs", True),
        ("cus_006", "usd-users", "USD"): ("unexplained", None, True),
        ("cus_011", "usd-requests", "USD"): ("missing_events", "ours", True),
        ("cus_900", "usd-requests", "USD"): ("unmapped", "ours", True),
    }
    of_customers = {key: value for key, value in found.items() if key[0] in (*CUSTOMERS, "cus_005", "cus_900")}
    differing = {key: value for key, value in of_customers.items() if value[0] != "equal"}
    # The system has the charge for other customers, so usage is what it lacks here.
    assert differing.pop(("cus_001", "usd-users", "USD")) == ("missing_events", "theirs", True)
    assert differing == expected
    assert len(of_customers) - len(differing) == everything - len(expected) + 4
    # Of these it has nothing at all, in a period that it covers.
    others = {value[:2] for key, value in found.items() if key[0] not in (*CUSTOMERS, "cus_005", "cus_900")}
    assert others == {("unmapped", "theirs")}

    with connect(warehouse.settings) as connection:
        land_shadow_billing(connection, path, progress=lambda _: None)
        comparisons = list_comparisons(connection, system="other_system", billing_period="2026-09")
        assert list_comparisons(connection, system="other_system", billing_period="2026-10") == []
    flags = [comparison.is_flagged for comparison in comparisons]
    assert flags == sorted(flags, reverse=True)
    assert sum(flags) == sum(flagged for _, _, flagged in found.values())
    text = next(
        describe_comparison(row)
        for row in comparisons
        if (row.customer_id, row.charge_code) == ("cus_004", "jpy-users")
    )
    assert "cus_004" in text
    assert "3,150" in text
    assert "3,500" in text
    assert "price" in text


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("system", " ", "line 3: system = ' ' is blank"),
        ("billing_period", "2026-13", "line 3: billing_period = '2026-13' is no month written YYYY-MM"),
        ("currency_code", "usd", "line 3: currency_code = 'usd' is no ISO 4217 code"),
        ("quantity", "many", "line 3: quantity = 'many' is not a number"),
        ("quantity", "NaN", "line 3: quantity = 'NaN' is not a finite number"),
        ("amount", "1e20", "line 3: amount = '1e20' is not a finite number of at most 15 digits"),
        ("event_count", "1.5", "line 3: event_count = '1.5' is no whole number"),
        ("charge_code", "", "line 3: quantity = '5' is given without charge_code"),
        ("customer_id", "cus_000", "line 3: is for the same system, .* as line 2.*add up"),
        ("amount", "1,5", "line 3: has more values than line 1 has columns"),
    ],
)
def test_a_bad_row_lands_nothing(warehouse: Warehouse, tmp_path: Path, column: str, value: str, message: str) -> None:
    good = dict(
        zip(SHADOW_FIELDS, ("other_system", "cus_000", "2026-09", "usd-users", "USD", "5", "7", "15.00"), strict=True)
    )
    bad = good | {"customer_id": "cus_001"} | {column: value}
    path = tmp_path / "billed.csv"
    path.write_text("\n".join(",".join(cells) for cells in (SHADOW_FIELDS, good.values(), bad.values())) + "\n")
    with connect(warehouse.settings) as connection:
        with pytest.raises(Exception, match=message) as raised:
            land_shadow_billing(connection, path, progress=lambda _: None)
        assert "billed.csv" in str(raised.value)
        assert connection.execute("select count(*) from raw.shadow_billing").fetchone() == (0,)
