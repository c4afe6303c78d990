"""A what-if as text: a table to read, CSV, or Markdown for a pull request."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal

from orchestration.lib.invoices import format_minor, format_quantity
from orchestration.lib.what_if import Difference, WhatIf

FORMATS = ("table", "csv", "markdown")

_HEADINGS = ("customer", "period", "item", "quantity now", "then", "amount now", "then", "difference", "percent")
_TOTAL_HEADINGS = ("currency", "now", "then", "difference", "percent", "changed", "unchanged", "customers changed")
# GitHub takes 65,536 characters in a comment; a row has about 150.
_MARKDOWN_ROWS = 200


def describe(found: WhatIf, output_format: str) -> str:
    """The what-if in a format of FORMATS."""
    if output_format == "csv":
        return _csv(found)
    return _markdown(found) if output_format == "markdown" else _table(found)


def item_label(difference: Difference) -> str:
    """What is charged: a charge's code by itself; minimums, commitments and credits say so."""
    if difference.line_type in ("usage", "flat"):
        return difference.item_code
    return f"{difference.line_type} {difference.item_code}"


def _percent(now: int | None, then: int | None) -> str:
    """The difference in percent of what it was; words where there is nothing to compare."""
    if now is None:
        return "new"
    if then is None:
        return "gone"
    if now == then:
        return ""
    if now == 0:
        return "from 0"
    percent = (Decimal(then - now) * 100 / abs(Decimal(now))).quantize(Decimal("0.01"), ROUND_HALF_UP)
    return f"{percent:+,}%"


def _signed(minor: int, minor_units: int) -> str:
    return ("+" if minor > 0 else "") + format_minor(minor, minor_units)


def _by_currency(differences: Iterable[Difference]) -> list[list[Difference]]:
    groups: dict[str, list[Difference]] = {}
    for difference in differences:
        groups.setdefault(difference.currency, []).append(difference)
    return list(groups.values())


def _totals(found: WhatIf) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for group in _by_currency(found.differences):
        now = sum(difference.amount_minor_now or 0 for difference in group)
        then = sum(difference.amount_minor_then or 0 for difference in group)
        changed = [difference for difference in group if difference.is_changed]
        units = group[0].minor_units
        rows.append(
            (
                group[0].currency,
                format_minor(now, units),
                format_minor(then, units),
                _signed(then - now, units),
                _percent(now, then),
                f"{len(changed):,}",
                f"{len(group) - len(changed):,}",
                f"{len({difference.customer_id for difference in changed}):,}",
            )
        )
    return rows


def _cells(difference: Difference) -> tuple[str, ...]:
    def quantity(value: Decimal | None) -> str:
        return "-" if value is None else format_quantity(value)

    def amount(value: int | None) -> str:
        return "-" if value is None else format_minor(value, difference.minor_units)

    return (
        difference.customer_id,
        difference.billing_period,
        item_label(difference),
        quantity(difference.quantity_now),
        quantity(difference.quantity_then),
        amount(difference.amount_minor_now),
        amount(difference.amount_minor_then),
        _signed(difference.difference_minor, difference.minor_units),
        _percent(difference.amount_minor_now, difference.amount_minor_then),
    )


def _subject(found: WhatIf) -> str:
    return (
        f"{', '.join(found.seeds)}; billing periods {found.from_period} to {found.to_period}; "
        f"deliveries received until {found.as_of:%Y-%m-%d %H:%M:%S} UTC"
    )


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """A table with the first columns, which are text, to the left and the others to the right."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    return [
        "  ".join(
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (headings, *rows)
    ]


def _table(found: WhatIf) -> str:
    lines = [f"what if {found.name}: {_subject(found)}"]
    for group in _by_currency(found.differences):
        changed = [difference for difference in group if difference.is_changed]
        if changed:
            lines += ["", group[0].currency, *_aligned(_HEADINGS, [_cells(row) for row in changed], 3)]
    lines += ["", "totals", *_aligned(_TOTAL_HEADINGS, _totals(found), 1)]
    return "\n".join(lines)


def _markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> list[str]:
    ruler = [":--" if column < texts else "--:" for column in range(len(headings))]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (headings, ruler, *rows)]


def _markdown(found: WhatIf) -> str:
    """Totals first; the rows folded, those that change most in front."""
    lines = [f"### What if: {found.name}", "", f"{_subject(found)}.", ""]
    lines += _markdown_table(_TOTAL_HEADINGS, _totals(found), 1)
    left = _MARKDOWN_ROWS
    for group in _by_currency(found.differences):
        changed = sorted(
            (difference for difference in group if difference.is_changed),
            key=lambda difference: -abs(difference.difference_minor),
        )
        shown = changed[:left]
        left -= len(shown)
        if shown:
            count = f"{len(changed):,} changed" + (f", {len(shown)} shown" if len(shown) < len(changed) else "")
            lines += ["", f"<details><summary>{group[0].currency}: {count}</summary>", ""]
            lines += _markdown_table(_HEADINGS, (_cells(row) for row in shown), 3)
            lines += ["", "</details>"]
        elif changed:
            lines += ["", f"{group[0].currency}: {len(changed):,} changed, not shown"]
    return "\n".join(lines)


def _csv(found: WhatIf) -> str:
    """Changed rows, with plain numbers; amounts in major units."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        (
            "scenario", "customer_id", "customer_name", "billing_period", "line_type", "item_code", "currency",
            "quantity_now", "quantity_then", "amount_now", "amount_then", "difference",
        )
    )  # fmt: skip
    for row in found.differences:
        if not row.is_changed:
            continue

        def major(minor: int | None, units: int = row.minor_units) -> str:
            return "" if minor is None else f"{Decimal(minor).scaleb(-units):f}"

        writer.writerow(
            (
                found.name, row.customer_id, row.customer_name or "", row.billing_period, row.line_type, row.item_code,
                row.currency,
                *("" if value is None else f"{value:f}" for value in (row.quantity_now, row.quantity_then)),
                major(row.amount_minor_now), major(row.amount_minor_then), major(row.difference_minor),
            )
        )  # fmt: skip
    return stream.getvalue().rstrip("\n")
