"""Why an invoice line costs what it costs: prices, tiers, quantities, entitlement, and the events behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from orchestration.lib.invoices import format_quantity
from orchestration.lib.project import MeteringError
from orchestration.lib.warehouse import Parameters, Warehouse, require_marts

_SHORTEST_PREFIX = 6


@dataclass(frozen=True)
class Explanation:
    """A line, explained. ``text`` is for people; ``events_sql`` lists the events behind the line (None without any)."""

    line_id: str
    text: str
    events_sql: str | None


def explain_line(warehouse: Warehouse, line_id: str) -> Explanation:
    """Explain an invoice line as rated now, named by its id or by the beginning of it (six characters or more).

    Adjustments and closed lines are explained by the rated line that they are about, with what the ledger has of it.

    Amounts are in major units of the line's currency, quantities in the unit of the metric or in billable units.

    Raises:
        MeteringError: there are no marts yet, or no line or several lines have an id like that.
    """
    require_marts(warehouse, "fct_rated_lines", "fct_rated_line_tiers", "fct_invoice_lines")
    rated_line_id, line = _find_line(warehouse, line_id)
    ledger = _ledger(warehouse, rated_line_id)
    if line is None:
        heading = [f"line            {rated_line_id}", "                is not rated any more; what was billed stays:"]
        return Explanation(line_id=rated_line_id, text="\n".join(heading + ledger), events_sql=None)
    parts = [*_heading(line), *ledger]
    events_sql = None
    match line["line_type"]:
        case "usage" | "flat":
            parts += _price(warehouse, line)
            parts += _tiers(warehouse, line)
            parts += _adjustments(line)
            if line["metric_code"] is not None:
                events_sql = _events_sql(warehouse, line)
                parts += _usage(warehouse, line, events_sql)
        case "minimum":
            parts += _missing_to_a_minimum(warehouse, line)
        case "commitment":
            parts += _missing_to_a_commitment(warehouse, line)
        case "credit":
            parts += _credit(warehouse, line)
    parts += _credits_that_pay(warehouse, line)
    if events_sql is not None:
        parts += ["", "the SQL that lists the events:", events_sql]
    return Explanation(line_id=line["line_id"], text="\n".join(parts), events_sql=events_sql)


def _rows(warehouse: Warehouse, sql: str, parameters: Parameters = ()) -> list[dict[str, Any]]:
    return warehouse.execute(sql, parameters).records()


def _find_line(warehouse: Warehouse, line_id: str) -> tuple[str, dict[str, Any] | None]:
    """The id of the rated line that an id of an invoice or rated line, or the beginning of one, means, and its row."""
    prefix = line_id.strip().lower()
    found = _rows(
        warehouse,
        """
        select distinct rated_line_id
        from (
            select line_id, rated_line_id from marts.fct_invoice_lines
            union all
            select line_id, rated_line_id from marts.fct_pending_adjustments
            union all
            select line_id, line_id as rated_line_id from marts.fct_rated_lines
            union all
            select rated_line_id as line_id, rated_line_id from marts.fct_invoice_lines
        ) as lines
        where line_id = $prefix or ($length >= $shortest and position($prefix in line_id) = 1)
        order by rated_line_id
        limit 2
        """,
        {"prefix": prefix, "length": len(prefix), "shortest": _SHORTEST_PREFIX},
    )
    if not found:
        raise MeteringError(
            f"No invoice line has the id {line_id!r}: metering invoices prints the beginning of each id "
            f"({_SHORTEST_PREFIX} characters or more of it are enough)."
        )
    if len(found) > 1:
        raise MeteringError(f"Several invoice lines have ids that begin with {line_id!r}: give more of the id.")
    rated_line_id = found[0]["rated_line_id"]
    rated = _rows(warehouse, "select * from marts.fct_rated_lines where line_id = ?", [rated_line_id])
    return rated_line_id, rated[0] if rated else None


def _ledger(warehouse: Warehouse, rated_line_id: str) -> list[str]:
    """What was billed for the line and what is not yet, entry by entry."""
    entries = _rows(
        warehouse,
        """
        select line_id, invoice_id, run_id, entry_kind, corrects_run_id, amount, currency_code
        from marts.fct_invoice_lines
        where rated_line_id = ?
        order by currency_code, entry_number
        """,
        [rated_line_id],
    )
    waiting = _rows(
        warehouse,
        "select * from marts.fct_pending_adjustments where rated_line_id = ? and adjustment_status <> 'ready'",
        [rated_line_id],
    )
    return [
        *(
            f"{'ledger' if entry['run_id'] else 'draft':<16}"
            f"{_money(entry['amount'], entry)} on {entry['invoice_id']}"
            + (f" (run {entry['run_id']})" if entry["run_id"] else "")
            + (f", adjustment to run {entry['corrects_run_id']}" if entry["entry_kind"] == "adjustment" else "")
            for entry in entries
        ),
        *(
            f"waiting         {_money(row['amount'], row)}: {row['cause']}, {row['adjustment_status']}"
            for row in waiting
        ),
    ]


def _money(amount: Decimal, line: Mapping[str, Any]) -> str:
    return f"{amount.normalize():,f} {line['currency_code']}"


def _instant(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant.isoformat(sep=' ')} UTC"


def _interval(start: datetime, end: datetime) -> str:
    return f"from {_instant(start)} until before {_instant(end)}"


def _heading(line: Mapping[str, Any]) -> list[str]:
    return [
        f"line            {line['line_id']}",
        f"                {line['description']}",
        f"subscription    {line['subscription_id']} of {line['customer_id']}, plan {line['plan_code']}",
        f"service period  {_interval(line['service_period_start_at'], line['service_period_end_at'])}"
        f" ({line['time_zone']})",
        f"amount          {_money(line['amount'], line)}",
    ]


def _price(warehouse: Warehouse, line: Mapping[str, Any]) -> list[str]:
    [price] = _rows(
        warehouse,
        "select * from seeds.charges where charge_code = ? and price_version = ?",
        [line["charge_code"], line["price_version"]],
    )
    whose = "of all customers" if price["customer_id"] is None else f"of {price['customer_id']} alone"
    until = "" if price["valid_to"] is None else f" until before {price['valid_to']}"
    parts = [
        "",
        f"price           {line['charge_code']} version {line['price_version']}, {line['charge_model']}, {whose}, "
        f"valid from {price['valid_from']}{until} ({line['time_zone']})",
    ]
    if (line["price_start_at"], line["price_end_at"]) != (
        line["service_period_start_at"],
        line["service_period_end_at"],
    ):
        parts.append(f"                holds here {_interval(line['price_start_at'], line['price_end_at'])}")
    return parts


def _tiers(warehouse: Warehouse, line: Mapping[str, Any]) -> list[str]:
    tiers = _rows(
        warehouse,
        "select * from marts.fct_rated_line_tiers where line_id = ? order by tier_number",
        [line["line_id"]],
    )
    parts = []
    for tier in tiers:
        up_to = "" if tier["up_to"] is None else f", up to {format_quantity(tier['up_to'])}"
        packages = (
            ""
            if tier["package_size"] is None
            else f" = {format_quantity(tier['priced_quantity'])} started packages of "
            f"{format_quantity(tier['package_size'])}"
        )
        computed = tier["priced_quantity"] * tier["unit_amount"] + tier["flat_amount"]
        share = "" if computed == tier["unrounded_amount"] else ", for the share of days on which the price held"
        flat = f" + {tier['flat_amount'].normalize():,f}" if tier["flat_amount"] else ""
        parts.append(
            f"tier {tier['tier_number']:<10} above {format_quantity(tier['above'])}{up_to}: "
            f"{format_quantity(tier['quantity'])}{packages} × {tier['unit_amount'].normalize():,f}{flat}"
            f" → {tier['unrounded_amount'].normalize():,f}{share}"
        )
    if not tiers:
        parts.append("tiers           none: nothing is billable")
    return parts


def _adjustments(line: Mapping[str, Any]) -> list[str]:
    parts = [f"unrounded       {_money(line['unrounded_amount'], line)}, rounded {_money(line['gross_amount'], line)}"]
    if line["discount_codes"] is not None:
        parts.append(f"discounts       {line['discount_codes']}: −{_money(line['discount_amount'], line)}")
    if line["maximum_reduction_amount"]:
        parts.append(f"maximum         of the charge reached: −{_money(line['maximum_reduction_amount'], line)}")
    return parts


def _usage(warehouse: Warehouse, line: Mapping[str, Any], events_sql: str) -> list[str]:
    [metric] = _rows(warehouse, "select * from marts.dim_billable_metrics where metric_code = ?", [line["metric_code"]])
    what = metric["aggregation"] + ("" if metric["property_name"] is None else f" of {metric['property_name']}")
    if metric["metering_period"] is not None:
        what += f" by {metric['metering_period']}, {metric['period_aggregation']} of these"
    parts = [
        "",
        f"metric          {line['metric_code']}: {what}"
        + ("" if metric["filters"] is None else f", where {metric['filters']}")
        + ("" if line["dimensions"] == "{}" else f", {line['dimensions']}"),
        f"metered         {format_quantity(line['metered_quantity'])} {metric['unit']}",
    ]
    if metric["unit_size"] != 1 or metric["quantity_rounding"] is not None:
        rounding = "" if metric["quantity_rounding"] is None else f", rounded ({metric['quantity_rounding']})"
        parts.append(f"billable unit   {format_quantity(metric['unit_size'])} {metric['unit']}{rounding}")
    parts += _entitlement(warehouse, line)
    parts.append(f"billable        {format_quantity(line['billable_quantity'])}")
    if line["event_count"]:
        parts.append(
            f"events          {line['event_count']:,}, the first at {_instant(line['first_event_at'])}, "
            f"the last at {_instant(line['last_event_at'])}"
        )
    else:
        parts.append("events          none under this price")
    listed = warehouse.execute(f"select count(*) from ({events_sql}) as events").fetchone()
    earlier = ", with the earlier changes that make the level" if metric["aggregation"] == "weighted_sum" else ""
    parts.append(f"                the SQL below lists {listed[0] if listed else 0:,} in the warehouse now{earlier}")
    return parts


def _entitlement(warehouse: Warehouse, line: Mapping[str, Any]) -> list[str]:
    rows = _rows(
        warehouse,
        """
        select
            coalesce(included.included_quantity, 0) as included_quantity,
            coalesce(rolled_over.rolled_over_quantity, 0) as rolled_over_quantity
        from intermediate.int_service_periods as periods
        inner join intermediate.int_included_quantities as included
            on periods.service_period_id = included.service_period_id and included.charge_code = $charge_code
        left join intermediate.int_rolled_over_quantities as rolled_over
            on
                periods.service_period_id = rolled_over.service_period_id
                and rolled_over.charge_code = $charge_code
                and rolled_over.dimensions = $dimensions
        where
            periods.subscription_id = $subscription_id
            and periods.plan_code = $plan_code
            and periods.service_period_start_at = $service_period_start_at
        """,
        {
            name: line[name]
            for name in ("charge_code", "dimensions", "subscription_id", "plan_code", "service_period_start_at")
        },
    )
    parts = [
        f"entitlement     {format_quantity(row['included_quantity'])} included in the service period"
        + (f" + {format_quantity(row['rolled_over_quantity'])} rolled over" if row["rolled_over_quantity"] else "")
        + f"; {format_quantity(line['included_quantity_used'])} of it used here"
        for row in rows
    ]
    if not rows and line["included_quantity_used"]:
        parts.append(f"free            {format_quantity(line['included_quantity_used'])}")
    return parts


_COMPARISONS = {"greater_than": ">", "at_least": ">=", "less_than": "<", "at_most": "<="}


def _filter_conditions(warehouse: Warehouse, filters: Sequence[Mapping[str, Any]]) -> list[str]:
    """One condition a property and operator; the rows of ``in`` and ``not_in`` belong together."""
    values: dict[tuple[str, str], list[str]] = {}
    for row in filters:
        values.setdefault((row["property_name"], row["operator"]), []).append(row["filter_value"])
    conditions = []
    for (name, operator), of_operator in values.items():
        text = warehouse.property_text("properties", name)
        match operator:
            case "is_present":
                conditions.append(f"{text} is not null")
            case "is_absent":
                conditions.append(f"{text} is null")
            case "equals" | "in":
                conditions.append(f"{text} in ({', '.join(map(warehouse.literal, of_operator))})")
            case "not_in":
                conditions.append(f"coalesce({text} not in ({', '.join(map(warehouse.literal, of_operator))}), true)")
            case _:
                conditions += [
                    f"cast({text} as decimal(38, 9)) {_COMPARISONS[operator]} {value}" for value in of_operator
                ]
    return conditions


def _events_sql(warehouse: Warehouse, line: Mapping[str, Any]) -> str:
    code = line["metric_code"]
    [metric] = _rows(warehouse, "select * from seeds.billable_metrics where metric_code = ?", [code])
    dimensions = _rows(
        warehouse,
        "select property_name from seeds.metric_dimensions "
        "where metric_code = ? and purpose = 'pricing' order by dimension_position",
        [code],
    )
    values = json.loads(line["dimensions"])
    filters = _rows(
        warehouse, "select * from seeds.metric_filters where metric_code = ? order by property_name, operator", [code]
    )
    conditions = [
        f"customer_id = {warehouse.literal(line['customer_id'])}",
        f"event_type = {warehouse.literal(metric['event_type'])}",
        # A level is the sum of all changes before.
        *(
            []
            if metric["aggregation"] == "weighted_sum"
            else [f"occurred_at >= timestamp '{line['price_start_at'].isoformat(sep=' ')}'"]
        ),
        f"occurred_at < timestamp '{line['price_end_at'].isoformat(sep=' ')}'",
        # Voided and replaced events, and late ones that are held.
        "idempotency_key not in (select idempotency_key from intermediate.int_events_not_metered)",
        *_filter_conditions(warehouse, filters),
    ]
    conditions += [
        f"{warehouse.property_text('properties', name)} is null"
        if values.get(name) is None
        else f"{warehouse.property_text('properties', name)} = {warehouse.literal(values[name])}"
        for name in (row["property_name"] for row in dimensions)
    ]
    # The line of a charge that has no priced usage names no dimension values, so none of the events are its own.
    if dimensions and line["dimensions"] == "{}":
        conditions.append("false")
    return (
        "select idempotency_key, occurred_at, properties\nfrom staging.stg_usage_events\nwhere\n    "
        + "\n    and ".join(conditions)
        + "\norder by occurred_at, idempotency_key"
    )


def _missing_to_a_minimum(warehouse: Warehouse, line: Mapping[str, Any]) -> list[str]:
    [totals] = _rows(
        warehouse,
        """
        select coalesce(sum(amount), 0) as amount, count(*) as line_count
        from marts.fct_rated_lines
        where
            line_type in ('usage', 'flat')
            and subscription_id = ? and plan_code = ? and charge_code = ? and service_period_start_at = ?
        """,
        [line["subscription_id"], line["plan_code"], line["charge_code"], line["service_period_start_at"]],
    )
    return [
        "",
        f"minimum         {_money(totals['amount'] + line['amount'], line)} for {line['charge_code']} "
        "in the service period",
        f"lines           {totals['line_count']}, together {_money(totals['amount'], line)}; "
        "this line is what is missing",
    ]


def _missing_to_a_commitment(warehouse: Warehouse, line: Mapping[str, Any]) -> list[str]:
    [commitment] = _rows(
        warehouse, "select * from seeds.commitments where commitment_code = ?", [line["commitment_code"]]
    )
    [true_up] = _rows(
        warehouse, "select * from intermediate.int_commitment_true_ups where line_id = ?", [line["line_id"]]
    )
    scale = line["amount"] / line["amount_minor"]
    until = "" if commitment["valid_to"] is None else f" until before {commitment['valid_to']}"
    return [
        "",
        f"commitment      {commitment['commitment_code']}: {_money(commitment['amount'], line)} per "
        f"{commitment['true_up'].replace('_', ' ')}, from {commitment['valid_from']}{until}",
        f"committed       {_money(true_up['committed_minor'] * scale, line)} for the days on which it holds",
        f"spent           {_money(true_up['spent_minor'] * scale, line)}; this line is what is missing",
    ]


def _credit(warehouse: Warehouse, line: Mapping[str, Any]) -> list[str]:
    [grant] = _rows(warehouse, "select * from seeds.credit_grants where grant_code = ?", [line["credit_grant_code"]])
    [used] = _rows(
        warehouse,
        """
        select -sum(amount) as amount
        from marts.fct_rated_lines
        where credit_grant_code = ? and credit_grant_start_at = ?
        """,
        [line["credit_grant_code"], line["credit_grant_start_at"]],
    )
    return [
        "",
        f"grant           {grant['grant_code']}: {_money(grant['amount'], line)}, priority {grant['priority']}, "
        f"in force from {_instant(line['credit_grant_start_at'])}; {_money(used['amount'], line)} of it is used",
        f"pays            line {line['paid_line_id']}",
    ]


def _credits_that_pay(warehouse: Warehouse, line: Mapping[str, Any]) -> list[str]:
    return [
        f"credit          {row['credit_grant_code']} pays {_money(-row['amount'], line)} (line {row['line_id']})"
        for row in _rows(
            warehouse,
            """
            select * from marts.fct_rated_lines
            where paid_line_id = ?
            order by credit_grant_code, credit_grant_start_at
            """,
            [line["line_id"]],
        )
    ]
