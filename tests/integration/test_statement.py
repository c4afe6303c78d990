"""Statements of all the demo's invoices, closed and drafts, read back as a browser would."""

from __future__ import annotations

import re
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestration.lib.close import close_periods
from orchestration.lib.demo_events import write_demo_data
from orchestration.lib.project import MeteringError
from orchestration.lib.statement import write_statement
from orchestration.lib.warehouse import connect
from tests.integration.conftest import Warehouse, llm_request


class Page(HTMLParser):
    """Amounts by the class of their cell, texts, and whatever a browser would fetch."""

    VOID = ("meta", "!doctype")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.amounts: dict[str, list[str]] = {"amount": [], "subtotal": [], "total": []}
        self.links: list[str] = []
        self.text = ""
        self.language = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.links += [value for name, value in values.items() if name in ("src", "href", "srcset", "data")]
        self.language = values.get("lang", self.language)
        if tag == "data":
            classes = " ".join(css for _, css in self.open).split()
            for kind in self.amounts:
                if kind in classes:
                    self.amounts[kind].append(values["value"])
        if tag not in self.VOID:
            self.open.append((tag, values.get("class", "")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_invoice_of_the_demo_adds_up(warehouse: Warehouse, tmp_path: Path) -> None:
    warehouse.land(*write_demo_data(tmp_path / "demo", events=2_000).event_files)
    warehouse.build_models()
    warehouse.count_as_whole()
    close_periods(
        warehouse.settings, ["2026-08", "2026-09"], forced_reason="few events, many malformed", progress=lambda _: None
    )
    with connect(warehouse.settings) as connection:
        before = write_statement(warehouse.settings, connection, "cus_000/2026-09/USD").read_bytes()
    warehouse.land_events(
        llm_request(f"late {customer}", customer_id=customer, p_context_tokens=2_000_000)
        for customer in ("cus_000", "cus_004", "cus_005")
    )
    warehouse.build_models()

    with connect(warehouse.settings) as connection:
        invoices = connection.execute(
            "select invoices.invoice_id, invoices.invoice_state, invoices.total_amount, currencies.minor_units, invoices.line_count "
            "from marts.fct_invoices as invoices inner join seeds.currencies using (currency_code) "
            "where invoices.run_id is not null or invoices.billing_period = '2026-10' order by 1"
        ).rows
        assert {state for _, state, _, _, _ in invoices} == {"closed", "draft"}
        assert {minor_units for _, _, _, minor_units, _ in invoices} == {0, 2, 3}
        for invoice_id, state, total, minor_units, line_count in invoices:
            path = write_statement(warehouse.settings, connection, invoice_id)
            page = Page(path.read_text(encoding="utf-8"))
            lines, subtotals, [shown] = (
                [Decimal(value) for value in page.amounts[kind]] for kind in ("amount", "subtotal", "total")
            )
            assert shown == total == sum(lines) == sum(subtotals), invoice_id
            assert len(lines) == line_count, invoice_id
            decimals = rf"-?\d+\.\d{{{minor_units}}}" if minor_units else r"-?\d+"
            assert all(re.fullmatch(decimals, value) for value in page.amounts["amount"] + page.amounts["total"])
            assert ("nothing is to be paid" in page.text) == (state == "draft"), invoice_id
            assert page.links == []
            assert page.language == "en"

        # Late usage became adjustments on the drafts; what was closed is the same to the byte.
        assert write_statement(warehouse.settings, connection, "cus_000/2026-09/USD").read_bytes() == before
        october = write_statement(
            warehouse.settings, connection, "cus_004/2026-10/JPY", tmp_path / "new" / "draft.html"
        )
        assert october == tmp_path / "new" / "draft.html"
        text = Page(october.read_text(encoding="utf-8")).text
        assert "Adjusts the billing period September 2026, billed by run 2026-09.1" in text
        assert "(Asia/Tokyo)" in text
        billed_before = connection.execute(
            "select sum(billed.amount) from marts.fct_invoice_lines as drafts inner join ledger.billing_ledger as billed "
            "on drafts.rated_line_id = billed.rated_line_id where drafts.invoice_id = 'cus_004/2026-10/JPY' "
            "and drafts.entry_kind = 'adjustment' group by drafts.line_id"
        ).rows
        assert billed_before
        assert all(f"Billed before{'−' if amount else ''}{amount:,.0f}" in text for (amount,) in billed_before)

        with pytest.raises(
            MeteringError, match=r"no invoice 'cus_000/2026-9/USD'. The nearest are cus_000/2026-09/USD"
        ):
            write_statement(warehouse.settings, connection, "cus_000/2026-9/USD")
        with pytest.raises(MeteringError, match="cannot be written"):
            write_statement(warehouse.settings, connection, "cus_000/2026-09/USD", october / "below a file.html")
