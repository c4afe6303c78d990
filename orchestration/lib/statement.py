"""The statement of an invoice: one HTML file that a customer can be sent, with all that explains the amounts in it.

A closed invoice is read from the ledger and from the price book of its run alone, neither of which changes, so its
statement is the same to the byte whenever it is made. A draft is read from the marts and changes with them.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from orchestration.lib.invoices import format_quantity
from orchestration.lib.project import MeteringError, Settings
from orchestration.lib.warehouse import Warehouse, require_marts

Row = Mapping[str, Any]

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_MEASURES = (
    "metered_quantity", "included_quantity_used", "billable_quantity", "unrounded_amount", "gross_amount",
    "discount_amount", "maximum_reduction_amount", "amount",
)  # fmt: skip
_GROUPS = ("Usage", "Recurring fees", "Minimums and commitments", "Credits", "Adjustments of earlier invoices")
_GROUP_OF_LINE_TYPE = {"usage": 0, "flat": 1, "minimum": 2, "commitment": 2, "credit": 3}
_REFERENCE_LENGTH = 10


@dataclass(frozen=True)
class Detail:
    """A row below a line: a tier, a discount, what was billed before. Texts, empty where there is nothing to say."""

    label: str
    quantity: str = ""
    price: str = ""
    computed: str = ""
    amount: str | Markup = ""


@dataclass(frozen=True)
class StatementLine:
    """A line as the customer reads it; ``amount`` in major units."""

    reference: str
    description: str
    notes: tuple[str, ...]
    details: tuple[Detail, ...]
    amount: Decimal


@dataclass(frozen=True)
class StatementGroup:
    """Lines of one kind; ``total`` is their sum in major units."""

    title: str
    lines: tuple[StatementLine, ...]
    total: Decimal


@dataclass(frozen=True)
class Statement:
    """What a statement says. Amounts in major units of the currency, ``minor_units`` is its number of decimals."""

    invoice_id: str
    title: str
    is_draft: bool
    customer_id: str
    customer_name: str
    billing_period: str
    currency: str
    minor_units: int
    dated: str
    groups: tuple[StatementGroup, ...]
    total: Decimal
    unused_charges: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class StatementSource:
    """What a statement is made of: lines, what was billed before by line, facts of the run, seeds of its price book."""

    lines: Sequence[Row]
    billed_before: Mapping[str, Row]
    facts: Row
    is_draft: bool
    seeds: Mapping[str, Sequence[Row]]


def write_statement(settings: Settings, warehouse: Warehouse, invoice_id: str, output: Path | None = None) -> Path:
    """Write the statement of an invoice, a credit note or a draft as an HTML file.

    Args:
        settings: where files beside the warehouse are.
        warehouse: an open warehouse.
        invoice_id: the invoice, as ``metering invoices`` prints it.
        output: the file to write; by default one named after the invoice in ``statements`` beside the database.

    Returns:
        The file.

    Raises:
        MeteringError: there is no such invoice, or the file cannot be written.
    """
    statement = make_statement(_read(warehouse, invoice_id))
    path = output or settings.database.parent / "statements" / statement_file_name(invoice_id)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(render_statement(statement).encode("utf-8"))
    except OSError as error:
        raise MeteringError(f"{path} cannot be written: {error.strerror}. Name another with --output.") from error
    return path


def statement_file_name(invoice_id: str) -> str:
    """A name that no other invoice has and that no file system reads as a folder."""
    return quote(invoice_id, safe="").replace("%2F", "+") + ".html"


def render_statement(statement: Statement) -> str:
    """The statement as HTML, with everything it needs inside."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["money"] = lambda amount: _money(amount, statement.minor_units)
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return template.render(statement=statement)


def _read(warehouse: Warehouse, invoice_id: str) -> StatementSource:
    require_marts(warehouse, "fct_invoices", "fct_invoice_lines")
    closed = warehouse.execute("select * from ledger.billing_ledger where invoice_id = ?", [invoice_id]).records()
    if closed:
        digest = closed[0]["price_book_hash"]
        recorded = {
            name: _recorded_seed(warehouse, digest, f"{folder}/{name}.csv")
            for folder, name in (("catalog", "billable_metrics"), ("pricing", "charges"), ("pricing", "currencies"))
        }
        return StatementSource(closed, _billed_before(warehouse, closed), closed[0], is_draft=False, seeds=recorded)
    drafts = warehouse.execute(
        "select * from marts.fct_invoice_lines where invoice_id = ? and run_id is null", [invoice_id]
    ).records()
    if not drafts:
        raise MeteringError(_unknown_invoice(warehouse, invoice_id))
    facts = warehouse.execute(
        "select as_of, price_book_hash from ops.build_log where step = 'started' order by logged_at desc limit 1"
    ).records()[0]
    seeds: dict[str, Sequence[Row]] = {
        name: warehouse.execute(f"select * from seeds.{name}").records()
        for name in ("billable_metrics", "charges", "currencies")
    }
    return StatementSource(drafts, _billed_before(warehouse, drafts), facts, is_draft=True, seeds=seeds)


def _recorded_seed(warehouse: Warehouse, digest: str, seed: str) -> list[Row]:
    """A seed as it was when the run was closed, with empty cells as None."""
    row = warehouse.execute(
        "select content from ledger.price_books where price_book_hash = ? and seed = ? limit 1", [digest, seed]
    ).fetchone()
    if row is None:
        raise MeteringError(
            f"Seed {seed} of price book {digest} is not in ledger.price_books, so the statement cannot name its units."
        )
    return [
        {name: value or None for name, value in record.items()}
        for record in csv.DictReader(io.StringIO(row[0].removeprefix("\ufeff"), newline=""))
    ]


def _billed_before(warehouse: Warehouse, lines: Sequence[Row]) -> dict[str, Row]:
    """What the ledger had of the lines that are not the first entry of theirs, by the id of the line."""
    before: dict[str, Row] = {}
    for line in lines:
        if line["entry_kind"] == "original":
            continue
        [sums] = warehouse.execute(
            f"""
            select count(*) as entries, {", ".join(f"coalesce(sum({name}), 0) as {name}" for name in _MEASURES)}
            from ledger.billing_ledger
            where rated_line_id = ? and currency_code = ? and entry_number < ?
            """,
            [line["rated_line_id"], line["currency_code"], line["entry_number"]],
        ).records()
        if sums["entries"]:
            before[line["line_id"]] = sums
    return before


def _unknown_invoice(warehouse: Warehouse, invoice_id: str) -> str:
    ids = [row[0] for row in warehouse.execute("select invoice_id from marts.fct_invoices order by 1").rows]
    of_customer = [known for known in ids if known.split("/")[0] == invoice_id.split("/")[0]]
    nearest = difflib.get_close_matches(invoice_id, of_customer or ids, n=3, cutoff=0.4)
    hint = f"The nearest are {', '.join(nearest)}." if nearest else "metering invoices lists them."
    return f"There is no invoice {invoice_id!r}. {hint}"


def make_statement(source: StatementSource) -> Statement:
    """Lay out the lines of one invoice for its customer."""
    first = source.lines[0]
    currency = first["currency_code"]
    minor_units = next(
        int(row["minor_units"]) for row in source.seeds["currencies"] if row["currency_code"] == currency
    )
    metrics = {row["metric_code"]: row for row in source.seeds["billable_metrics"]}
    descriptions = {line["rated_line_id"]: _description(line) for line in source.lines}
    ordered = sorted(
        source.lines,
        key=lambda line: (
            line["description"],
            line["service_period_start_at"],
            line["price_start_at"],
            line["line_id"],
        ),
    )
    groups = []
    for number, title in enumerate(_GROUPS):
        lines = tuple(
            _statement_line(line, source.billed_before.get(line["line_id"]), metrics, descriptions, minor_units)
            for line in ordered
            if _group_number(line) == number
        )
        if lines:
            groups.append(StatementGroup(title, lines, sum((line.amount for line in lines), Decimal(0))))
    total = sum((group.total for group in groups), Decimal(0))
    document = "Credit note" if total < 0 else "Invoice"
    return Statement(
        invoice_id=first["invoice_id"],
        title=f"Draft {document.lower()}" if source.is_draft else document,
        is_draft=source.is_draft,
        customer_id=first["customer_id"],
        customer_name=first["customer_name"] or first["customer_id"],
        billing_period=_month(first["billing_period"]),
        currency=currency,
        minor_units=minor_units,
        dated=f"{_instant(source.facts['as_of' if source.is_draft else 'closed_at'])} UTC",
        groups=tuple(groups),
        total=total,
        unused_charges=_unused_charges(source),
        provenance=_provenance(source),
    )


def _group_number(line: Row) -> int:
    return 4 if line["entry_kind"] == "adjustment" else _GROUP_OF_LINE_TYPE[line["line_type"]]


def _statement_line(
    line: Row, before: Row | None, metrics: Mapping[str, Row], descriptions: Mapping[str, str], minor_units: int
) -> StatementLine:
    """A line with its notes and the rows below it. Those of an adjustment are about the amount as known now."""
    is_adjustment = line["entry_kind"] == "adjustment"
    now = {measure: line[measure] + (before[measure] if before else 0) for measure in _MEASURES}
    metric = metrics.get(line["metric_code"]) if line["metric_code"] else None
    notes = [_service_period(line)]
    if (line["price_start_at"], line["price_end_at"]) != (
        line["service_period_start_at"],
        line["service_period_end_at"],
    ):
        notes.append(f"Price in force {_interval(line['price_start_at'], line['price_end_at'], line['time_zone'])}")
    if is_adjustment:
        notes.append(
            f"Adjusts the billing period {_month(line['original_billing_period'])}, "
            f"billed by run {line['corrects_run_id']}"
        )
    if line["line_type"] == "usage":
        notes += _usage_notes(line, now, metric, is_adjustment)
    elif line["line_type"] == "credit":
        paid = descriptions.get(line["paid_line_id"])
        notes.append(f"Credit {line['credit_grant_code']} pays {paid or 'a line of another invoice'}")
    elif line["line_type"] in ("minimum", "commitment"):
        notes.append("What the lines of the service period lack to the agreed amount")
    details = [*_tier_details(line), *_reduction_details(line, now, minor_units)]
    if is_adjustment:
        details += [
            Detail("As known now", amount=_money(now["amount"], minor_units)),
            Detail("Billed before", amount=_money(-(before["amount"] if before else Decimal(0)), minor_units)),
        ]
    return StatementLine(
        reference=line["line_id"][:_REFERENCE_LENGTH],
        description=_description(line),
        notes=tuple(notes),
        details=tuple(details),
        amount=line["amount"],
    )


def _description(line: Row) -> str:
    """The text of a line, with dimension values for people where it ends in their JSON."""
    values = json.loads(line["dimensions"])
    if not values or not line["description"].endswith(line["dimensions"]):
        return str(line["description"])
    readable = ", ".join(f"{name}: {value}" for name, value in values.items())
    return f"{line['description'].removesuffix(line['dimensions']).rstrip()} ({readable})"


def _usage_notes(line: Row, now: Row, metric: Row | None, is_adjustment: bool) -> list[str]:
    unit = f" (unit: {metric['unit']})" if metric and metric["unit"] else ""
    if not now["metered_quantity"] and not line["event_count"]:
        due = "the price of no usage is due" if now["amount"] else "listed although nothing is due"
        return [f"No usage in the service period; {due}"]
    size = Decimal(str(metric["unit_size"] or 1)) if metric else Decimal(1)
    notes = [f"Metered: {format_quantity(now['metered_quantity'])}{unit}"]
    if size != 1:
        notes[0] += f", billed by {format_quantity(size)}"
    if now["included_quantity_used"]:
        notes[0] += (
            f"; included: {format_quantity(now['included_quantity_used'])}"
            f"; billable: {format_quantity(now['billable_quantity'])}"
        )
    if line["event_count"] and line["first_event_at"]:
        counted = f"{abs(line['event_count']):,} {'event' if abs(line['event_count']) == 1 else 'events'}"
        first, last = (_clock(_local(line[name], line["time_zone"])) for name in ("first_event_at", "last_event_at"))
        if is_adjustment:
            more = "more" if line["event_count"] > 0 else "fewer"
            notes.append(f"{counted} {more} than before; of all now, first {first}, last {last} ({line['time_zone']})")
        else:
            notes.append(f"{counted}; first {first}, last {last} ({line['time_zone']})")
    return notes


def _tier_details(line: Row) -> list[Detail]:
    details = []
    tiers = json.loads(line["tiers"])
    is_rate = line["charge_model"] in ("percentage", "graduated_percentage")
    for tier in tiers:
        number = {name: None if value is None else Decimal(value) for name, value in tier.items()}
        quantity, price, flat = (
            number[name] or Decimal(0) for name in ("priced_quantity", "unit_amount", "flat_amount")
        )
        computed = number["unrounded_amount"] or Decimal(0)
        label = "Fee" if line["line_type"] == "flat" else _tier_label(number, is_only=len(tiers) == 1)
        if number["package_size"] is not None:
            label += f", started packages of {format_quantity(number['package_size'])}"
        if quantity * price + flat != computed:
            label += ", for the share of days"
        if flat:
            label += f", {'fees of single events' if is_rate else 'plus flat'} {_exact(flat)}"
        details.append(
            Detail(
                label=label,
                quantity=format_quantity(quantity),
                price=f"{_exact(price * 100)} %" if is_rate else _exact(price),
                computed=_exact(computed),
            )
        )
    return details


def _tier_label(tier: Mapping[str, Decimal | None], *, is_only: bool) -> str:
    above, up_to = tier["above"] or Decimal(0), tier["up_to"]
    if up_to is None:
        return "All units" if is_only and not above else f"Above {format_quantity(above)}"
    bound = f"up to {format_quantity(up_to)}"
    return f"Above {format_quantity(above)} {bound}" if above else bound.capitalize()


def _reduction_details(line: Row, now: Row, minor_units: int) -> list[Detail]:
    details = []
    if now["discount_amount"] or now["maximum_reduction_amount"]:
        details.append(Detail("Rounded", amount=_money(now["gross_amount"], minor_units)))
    if now["discount_amount"]:
        codes = f" {line['discount_codes']}" if line["discount_codes"] else ""
        details.append(Detail(f"Discount{codes}", amount=_money(-now["discount_amount"], minor_units)))
    if now["maximum_reduction_amount"]:
        details.append(
            Detail("Reduced to the maximum of the charge", amount=_money(-now["maximum_reduction_amount"], minor_units))
        )
    return details


def _unused_charges(source: StatementSource) -> tuple[str, ...]:
    """Usage charges of the invoice's plans that have no line because nothing was used: zero usage, policy no_line."""
    originals = [line for line in source.lines if line["entry_kind"] == "original"]
    billed = {line["charge_code"] for line in originals}
    names = set()
    for plan, customer, zone, start, end in {
        (
            line["plan_code"],
            line["customer_id"],
            line["time_zone"],
            line["service_period_start_at"],
            line["service_period_end_at"],
        )
        for line in originals
        if line["line_type"] == "usage"
    }:
        names |= {
            charge["charge_name"]
            for charge in source.seeds["charges"]
            if charge["plan_code"] == plan
            and charge["metric_code"]
            and charge["zero_usage"] == "no_line"
            and charge["charge_code"] not in billed
            and charge["customer_id"] in (None, customer)
            and _instant_of_seed(charge["valid_from"]) < _local(end, zone).replace(tzinfo=None)
            and (
                charge["valid_to"] is None
                or _instant_of_seed(charge["valid_to"]) > _local(start, zone).replace(tzinfo=None)
            )
        }
    return tuple(sorted(names))


def _instant_of_seed(value: str | datetime) -> datetime:
    """A wall clock as a seed has it: text in a recorded one, a timestamp in the warehouse's."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def _provenance(source: StatementSource) -> tuple[tuple[str, str], ...]:
    """What reproduces the amounts."""
    facts = source.facts
    known = [("Deliveries received until", f"{_instant(facts['as_of'], exact=True)} UTC")]
    if not source.is_draft:
        known = [("Billing run", facts["run_id"]), *known, ("Code revision", facts["code_revision"])]
    return (*known, ("Price book", facts["price_book_hash"] or "not recorded"))


def _money(amount: Decimal, minor_units: int) -> Markup:
    """An amount with exactly the currency's decimals, and its value for machines."""
    text = f"{abs(amount):,.{minor_units}f}"
    value = f"{amount:.{minor_units}f}"
    if Decimal(value) != amount:
        raise MeteringError(f"{amount} is no whole number of minor units; its currency has {minor_units} decimals.")
    return Markup('<data value="{}">{}{}</data>').format(value if amount else text, "−" if amount < 0 else "", text)


def _exact(number: Decimal) -> str:
    """A price or an amount before rounding, with all its digits and a minus sign."""
    text = f"{abs(number):,f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{'−' if number < 0 else ''}{text}"


def _month(period: str) -> str:
    year, month = period.split("-")
    return f"{_MONTHS[int(month) - 1]} {year}"


def _local(instant: datetime, zone: str) -> datetime:
    return instant.replace(tzinfo=ZoneInfo("UTC")).astimezone(ZoneInfo(zone))


def _date(local: datetime) -> str:
    return f"{local.day} {_MONTHS[local.month - 1]} {local.year}"


def _clock(local: datetime) -> str:
    return f"{_date(local)} {local:%H:%M:%S}"


def _instant(instant: datetime, *, exact: bool = False) -> str:
    return instant.isoformat(sep=" ") if exact else _clock(instant)


def _interval(start: datetime, end: datetime, zone: str) -> str:
    """A half-open interval in a zone: as days where it begins and ends at midnight, else by the clock."""
    local_start, local_end = _local(start, zone), _local(end, zone)
    if all(
        (local.hour, local.minute, local.second, local.microsecond) == (0, 0, 0, 0)
        for local in (local_start, local_end)
    ):
        last_day = local_end.replace(tzinfo=None) - timedelta(days=1)
        return f"{_date(local_start)} to {_date(last_day)} ({zone})"
    return f"{_clock(local_start)} until before {_clock(local_end)} ({zone})"


def _service_period(line: Row) -> str:
    return (
        f"Service period {_interval(line['service_period_start_at'], line['service_period_end_at'], line['time_zone'])}"
    )
