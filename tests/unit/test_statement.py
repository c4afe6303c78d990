"""What a statement says, from rows as the ledger has them."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from orchestration.lib.project import MeteringError
from orchestration.lib.statement import StatementSource, make_statement, render_statement, statement_file_name

SEEDS: dict[str, list[dict[str, Any]]] = {
    "billable_metrics": [{"metric_code": "calls", "unit": "call", "unit_size": "1000"}],
    "charges": [
        {
            "charge_code": code,
            "plan_code": "basic",
            "metric_code": "calls",
            "customer_id": customer,
            "charge_name": f"Name of {code}",
            "zero_usage": policy,
            "valid_from": "2026-01-01 00:00:00",
            "valid_to": valid_to,
        }
        for code, policy, customer, valid_to in (
            ("calls", "no_line", None, None),
            ("images", "no_line", None, None),
            ("listed", "zero_line", None, None),
            ("ended", "no_line", None, "2026-09-01 00:00:00"),
            ("another's", "no_line", "cus_2", None),
        )
    ],
    "currencies": [
        {"currency_code": "USD", "minor_units": "2"},
        {"currency_code": "JPY", "minor_units": "0"},
        {"currency_code": "KWD", "minor_units": "3"},
    ],
}


def tier(**changes: str | None) -> dict[str, str | None]:
    plain = {
        "tier_number": "1", "above": "0.000000000", "up_to": None, "quantity": "1.500000000", "package_size": None,
        "priced_quantity": "1.500000000", "unit_amount": "2.000000000000", "flat_amount": "0", "unrounded_amount": "3.0",
    }  # fmt: skip
    return plain | changes


def line(amount: str, *, tiers: list[dict[str, str | None]] | None = None, **changes: Any) -> dict[str, Any]:
    """A usage line of September in Berlin, in which summer time holds."""
    row: dict[str, Any] = {
        "line_id": "0123456789abcdef", "rated_line_id": "rated", "invoice_id": "cus_1/2026-09/USD", "run_id": "2026-09.1",
        "entry_kind": "original", "entry_number": 1, "corrects_run_id": None, "customer_id": "cus_1",
        "customer_name": "Sample customer", "plan_code": "basic", "charge_code": "calls", "metric_code": "calls",
        "credit_grant_code": None, "paid_line_id": None, "line_type": "usage", "description": "Calls",
        "charge_model": "per_unit", "dimensions": "{}", "discount_codes": None, "time_zone": "Europe/Berlin",
        "billing_period": "2026-09", "original_billing_period": "2026-09", "currency_code": "USD",
        "metered_quantity": Decimal("1500"), "included_quantity_used": Decimal(0), "billable_quantity": Decimal("1.5"),
        "unrounded_amount": Decimal(amount), "gross_amount": Decimal(amount), "discount_amount": Decimal(0),
        "maximum_reduction_amount": Decimal(0), "amount": Decimal(amount), "event_count": 2,
        "first_event_at": datetime(2026, 8, 31, 22), "last_event_at": datetime(2026, 9, 30, 21, 59, 59),
        "service_period_start_at": datetime(2026, 8, 31, 22), "service_period_end_at": datetime(2026, 9, 30, 22),
        "price_start_at": datetime(2026, 8, 31, 22), "price_end_at": datetime(2026, 9, 30, 22),
        "tiers": json.dumps([tier()] if tiers is None else tiers), "as_of": datetime(2026, 10, 3),
        "closed_at": datetime(2026, 10, 3, 1), "price_book_hash": "book", "code_revision": "code",
    }  # fmt: skip
    return row | changes


def statement_of(*lines: dict[str, Any], before: dict[str, Any] | None = None, is_draft: bool = False) -> Any:
    return make_statement(StatementSource(lines, before or {}, lines[0], is_draft=is_draft, seeds=SEEDS))


def test_names_and_descriptions_are_text_and_never_markup() -> None:
    hostile = '<script>alert("1")</script>&\' onload=x'
    html = render_statement(
        statement_of(
            line(
                "3", customer_name=hostile, customer_id=hostile, description=f'{hostile} {{"region": "<b>"}}',
                dimensions='{"region": "<b>"}', discount_codes=hostile, discount_amount=Decimal(1), invoice_id=hostile,
            )
        )
    )  # fmt: skip
    assert "<script" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;&#39; onload=x (region: &lt;b&gt;)" in html


@pytest.mark.parametrize(
    ("currency", "amount", "text"),
    [
        ("JPY", "-1234", "−1,234"),
        ("USD", "-1234.5", "−1,234.50"),
        ("KWD", "-0.001", "−0.001"),
        ("KWD", "12.5", "12.500"),
    ],
)
def test_amounts_have_the_decimals_of_their_currency(currency: str, amount: str, text: str) -> None:
    statement = statement_of(line(amount, currency_code=currency))
    assert statement.title == ("Credit note" if amount.startswith("-") else "Invoice")
    html = render_statement(statement)
    assert f">{text}</data></td></tr></tfoot>" in html
    assert ("Total in your favour" in html) == amount.startswith("-")
    assert f'value="{Decimal(amount):.{statement.minor_units}f}"' in html


def test_an_amount_that_is_no_whole_number_of_minor_units_is_refused() -> None:
    with pytest.raises(MeteringError, match="has 0 decimals"):
        render_statement(statement_of(line("1.5", currency_code="JPY")))


def test_a_line_says_how_it_came_about() -> None:
    statement = statement_of(
        line(
            "2.25",
            included_quantity_used=Decimal("0.5"),
            gross_amount=Decimal("3.50"),
            discount_amount=Decimal(1),
            discount_codes="launch",
            maximum_reduction_amount=Decimal("0.25"),
            price_start_at=datetime(2026, 9, 14, 22),
            tiers=[
                tier(up_to="1.000000000", priced_quantity="1", unrounded_amount="2"),
                tier(above="1.000000000", priced_quantity="1", package_size="10", flat_amount="0.5", unit_amount="1.000000000001",
                     unrounded_amount="1.500000000001"),
            ],
        )
    )  # fmt: skip
    [group] = statement.groups
    [shown] = group.lines
    assert shown.reference == "0123456789"
    assert shown.notes == (
        "Service period 1 September 2026 to 30 September 2026 (Europe/Berlin)",
        "Price in force 15 September 2026 to 30 September 2026 (Europe/Berlin)",
        "Metered: 1,500 (unit: call), billed by 1,000; included: 0.5; billable: 1.5",
        "2 events; first 1 September 2026 00:00:00, last 30 September 2026 23:59:59 (Europe/Berlin)",
    )
    assert [(row.label, row.quantity, row.price, row.computed) for row in shown.details[:2]] == [
        ("Up to 1", "1", "2", "2"),
        ("Above 1, started packages of 10, plus flat 0.5", "1", "1.000000000001", "1.500000000001"),
    ]
    assert [(row.label, row.amount.striptags()) for row in shown.details[2:]] == [
        ("Rounded", "3.50"), ("Discount launch", "−1.00"), ("Reduced to the maximum of the charge", "−0.25")
    ]  # fmt: skip
    assert statement.unused_charges == ("Name of images",)
    assert dict(statement.provenance) == {
        "Billing run": "2026-09.1",
        "Deliveries received until": "2026-10-03 00:00:00 UTC",
        "Code revision": "code",
        "Price book": "book",
    }


def test_lines_are_in_groups_and_an_adjustment_says_what_it_corrects() -> None:
    nothing = {name: Decimal(0) for name in ("metered_quantity", "included_quantity_used", "billable_quantity")}
    statement = statement_of(
        line("-3", line_type="credit", credit_grant_code="welcome", paid_line_id="rated", charge_code=None, metric_code=None,
             line_id="credit", rated_line_id="credit", description="Credit welcome", tiers=[], event_count=0, **nothing),
        line("1", line_id="late", rated_line_id="old", entry_kind="adjustment", corrects_run_id="2026-08.1", event_count=1,
             original_billing_period="2026-08", description="Adjustment of 2026-08: Calls", metered_quantity=Decimal(500)),
        line("3"),
        line("20", line_type="flat", line_id="fee", rated_line_id="fee", metric_code=None, charge_code="fee",
             description="Fee", event_count=0, tiers=[tier(priced_quantity="1", unit_amount="31", unrounded_amount="20")]),
        line("4", line_type="minimum", line_id="minimum", rated_line_id="minimum", metric_code=None, tiers=[]),
        before={"late": {name: Decimal(2) for name in (
            "metered_quantity", "included_quantity_used", "billable_quantity", "unrounded_amount", "gross_amount",
            "discount_amount", "maximum_reduction_amount", "amount")}},
    )  # fmt: skip
    assert [(group.title, group.total) for group in statement.groups] == [
        ("Usage", Decimal(3)),
        ("Recurring fees", Decimal(20)),
        ("Minimums and commitments", Decimal(4)),
        ("Credits", Decimal(-3)),
        ("Adjustments of earlier invoices", Decimal(1)),
    ]
    assert statement.total == 25
    _, [fee], _, [credit], [late] = (group.lines for group in statement.groups)
    assert fee.details[0].label == "Fee, for the share of days"
    assert "Credit welcome pays Calls" in credit.notes
    assert "Adjusts the billing period August 2026, billed by run 2026-08.1" in late.notes
    assert "Metered: 502 (unit: call), billed by 1,000; included: 2; billable: 3.5" in late.notes
    assert "1 event more than before" in late.notes[-1]
    assert [row.label for row in late.details[-2:]] == ["As known now", "Billed before"]


def test_zero_usage_is_said() -> None:
    unused = {"metered_quantity": Decimal(0), "event_count": 0, "first_event_at": None, "last_event_at": None}
    [group] = statement_of(line("5", **unused), line("0", line_id="b", tiers=[], **unused)).groups
    assert [shown.notes[-1] for shown in group.lines] == [
        "No usage in the service period; the price of no usage is due",
        "No usage in the service period; listed although nothing is due",
    ]


def test_a_draft_is_marked() -> None:
    statement = statement_of(line("-3", run_id=None), is_draft=True)
    assert statement.title == "Draft credit note"
    assert "<strong>Draft.</strong>" in render_statement(statement)
    assert "Billing run" not in dict(statement.provenance)


def test_file_names_are_of_one_invoice_each_and_name_no_folder() -> None:
    assert statement_file_name("cus_1/2026-09/USD") == "cus_1+2026-09+USD.html"
    names = {statement_file_name(name) for name in ("a/b", "a+b", "../a", "..\\a", "a%2Fb", ".")}
    assert len(names) == 6
    assert not any("/" in name or "\\" in name for name in names)
