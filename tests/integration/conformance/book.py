"""Cases of public billing systems, as one price book of this project: its seeds, its events, and what the marts must show.

`cases.json` has the figures. `catalog` has seed rows; each case of `cases` has:

- `number`, `model`, `peer`, `file`: the source, a file of the peer's repository at the commit in `commits`, and what it tests.
- `outcome`: `runs` (our figures are the source's), `differs` (a figure is ours by a `decision`, a heading of DECISIONS.md; the
  source's is beside it in `source_is`) or `not_applicable` (with a `reason` and the source's figure in `source_is`).
- `account`: a customer with a subscription. Rows have the columns of the seeds, without keys and with the defaults below. A charge
  with the code of one before it is its next price version, and says only what changes. `phases` are (plan, start, end) of the
  subscription. `usage` has events: a quantity alone, or properties with `at` and `event_type`.
- `accounts`: names of several accounts of the case, with what each has other than `account`.
- `expected`: what is checked, of the rows that fit `of` (columns and values; by default all rows of each account of the case):
  the `sum` of a column; its `values` in order of time and charge; its `steps`, the sum of each account less that of the account
  before, which is what a later run adds (`of` may then be a list, one for each account); the `balance` of a credit grant. Rows are
  invoice lines, or with `from` metered `usage`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

CASES_FILE = Path(__file__).with_name("cases.json")
# The month of a case that names none, and the first of its events; others follow hour by hour.
DEFAULT_PHASES = [["plan", "2024-03-01", "2024-04-01"]]
DEFAULT_EVENT_AT = datetime(2024, 3, 10, 12)
SINCE = "2020-01-01 00:00:00"
CHARGE_DEFAULTS = {
    "plan_code": "plan",
    "charge_code": "usage",
    "metric_code": "units",
    "billing_timing": "in_arrears",
    "proration": "by_day",
    "zero_usage": "no_line",
    "valid_from": SINCE,
}
TIMES = ("started_at", "ended_at", "valid_from", "valid_to", "created_at", "effective_at", "expires_at")
# Columns whose values carry the account as a prefix in the warehouse.
CODES = ("plan_code", "charge_code", "credit_grant_code")
ORDER = ("service_period_start_at", "price_start_at", "charge_code", "line_type")

Row = dict[str, Any]
Marts = Mapping[str, Sequence[Row]]
Value = str | list[str]


@dataclass(frozen=True)
class Account:
    """A customer with one subscription, whose id is the customer's."""

    id: str
    book: Mapping[str, Any]

    def code(self, code: str) -> str:
        return f"{self.id}-{code}"

    @property
    def currency(self) -> str:
        return self.book.get("currency_code", "USD")


@dataclass(frozen=True)
class Case:
    """One priced case of a public billing system."""

    number: int
    model: str
    peer: str
    file: str
    outcome: str
    note: str = ""
    decision: str = ""
    reason: str = ""
    source_is: Any = None
    account: Mapping[str, Any] = field(default_factory=dict)
    accounts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    expected: Sequence[Mapping[str, Any]] = ()

    @property
    def id(self) -> str:
        return f"{self.number:03d}-{self.model}-{self.peer}"

    @property
    def own_accounts(self) -> dict[str, Account]:
        """By name; the only account of a case has none."""
        if self.outcome == "not_applicable":
            return {}
        key = f"case-{self.number:03d}"
        if not self.accounts:
            return {"": Account(key, self.account)}
        return {name: Account(f"{key}-{name}", {**self.account, **own}) for name, own in self.accounts.items()}


@dataclass(frozen=True)
class Figure:
    """One figure of a case: what the marts show, and what the fixture and the source say."""

    what: str
    actual: Value
    expected: Value
    source: Value

    @property
    def holds(self) -> bool:
        return _comparable(self.actual) == _comparable(self.expected)

    def __str__(self) -> str:
        return f"{self.what} is {self.actual}, expected {self.expected}"


def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(CASES_FILE.read_text())
    return document


@cache
def read_cases() -> tuple[Case, ...]:
    return tuple(Case(**case) for case in _document()["cases"])


# --- seeds and events ---------------------------------------------------------------------------------------------------


def _price_versions(account: Account) -> Iterator[Row]:
    latest: dict[str, Row] = {}
    for charge in account.book["charges"]:
        code = charge.get("charge_code", CHARGE_DEFAULTS["charge_code"])
        before = latest.get(code)
        row = {**(before or {**CHARGE_DEFAULTS, "price_version": 0}), **charge}
        row["price_version"] += 1
        if before is not None:
            before["valid_to"] = row["valid_from"]
            yield before
        latest[code] = row
    yield from latest.values()


def _account_seeds(account: Account) -> Iterator[tuple[str, Row]]:
    book = account.book
    yield "accounts/customers", {"customer_id": account.id, "customer_name": account.id}
    phases = book.get("phases", DEFAULT_PHASES)
    for plan, start, end in phases:
        yield (
            "accounts/subscriptions",
            {
                "subscription_id": account.id,
                "customer_id": account.id,
                "plan_code": account.code(plan),
                "time_zone": book.get("time_zone", "UTC"),
                "anchor_date": book.get("anchor_date"),
                "started_at": start,
                "ended_at": end,
            },
        )
    versions = list(_price_versions(account))
    for plan in dict.fromkeys([*(phase[0] for phase in phases), *(version["plan_code"] for version in versions)]):
        code = account.code(plan)
        yield (
            "pricing/plans",
            {
                "plan_code": code,
                "plan_family": code,
                "plan_version": 1,
                "plan_name": code,
                "billing_interval": book.get("billing_interval", "month"),
                "currency_code": account.currency,
            },
        )
    for version in versions:
        charge = {name: value for name, value in version.items() if name not in ("tiers", "terms")}
        charge["plan_code"] = account.code(charge["plan_code"])
        charge["charge_code"] = account.code(charge["charge_code"])
        key = {"charge_code": charge["charge_code"], "price_version": charge["price_version"]}
        yield "pricing/charges", {**charge, "charge_name": charge["charge_code"]}
        for number, tier in enumerate(version["tiers"], start=1):
            yield "pricing/charge_tiers", {"tier_number": number, "unit_amount": 0, "flat_amount": 0, **key, **tier}
        if "terms" in version:
            yield "pricing/percentage_terms", {**key, **version["terms"]}
    for entitlement in book.get("entitlements", []):
        charge_code = account.code(entitlement.get("charge_code", CHARGE_DEFAULTS["charge_code"]))
        defaults = {"proration": "by_day", "valid_from": SINCE}
        yield "pricing/entitlements", {**defaults, **entitlement, "charge_code": charge_code}
    for number, discount in enumerate(book.get("discounts", []), start=1):
        fixed = {"discount_type": "fixed", "currency_code": account.currency}
        kind = fixed if "amount" in discount else {"discount_type": "percentage"}
        key = {"discount_code": account.code(f"discount-{number}"), "customer_id": account.id}
        yield "pricing/discounts", {**key, **kind, "valid_from": SINCE, **discount}
    for grant in book.get("credit_grants", []):
        own = {"grant_code": account.code(grant["grant_code"]), "customer_id": account.id}
        effective = DEFAULT_PHASES[0][1] + " 00:00:00"
        defaults = {"priority": 1, "cost_basis": 1, "created_at": SINCE, "effective_at": effective}
        yield "pricing/credit_grants", {**defaults, **grant, **own, "currency_code": account.currency}


def all_accounts() -> Iterator[Account]:
    for case in read_cases():
        yield from case.own_accounts.values()


def build_seeds() -> dict[str, list[Row]]:
    """Rows of every seed that a price book is made of; what no case needs is empty."""
    seeds: dict[str, list[Row]] = {
        seed: []
        for seed in (
            "accounts/customers",
            "accounts/subscriptions",
            "pricing/plans",
            "pricing/charges",
            "pricing/charge_tiers",
            "pricing/percentage_terms",
            "pricing/entitlements",
            "pricing/commitments",
            "pricing/discounts",
            "pricing/credit_grants",
            "pricing/credit_grant_charges",
        )
    }
    catalog = _document()["catalog"]
    for metric in catalog["billable_metrics"]:
        metric |= {"metric_name": metric["metric_code"], "unit": "unit", "finance_confirmed_on": SINCE[:10]}
    seeds |= {f"catalog/{seed}": rows for seed, rows in catalog.items()}
    for account in all_accounts():
        for seed, row in _account_seeds(account):
            times = {name: datetime.fromisoformat(row[name]) for name in TIMES if row.get(name)}
            seeds[seed].append({**row, **times})
    return seeds


def build_events() -> Iterator[Row]:
    """The events of every account, each with the envelope that the landing reads."""
    for account in all_accounts():
        for number, usage in enumerate(account.book.get("usage", [])):
            properties = {"quantity": usage} if isinstance(usage, str) else dict(usage)
            at = DEFAULT_EVENT_AT + timedelta(hours=number)
            yield {
                "idempotency_key": f"{account.id}-{number}",
                "event_type": properties.pop("event_type", "usage"),
                "schema_version": 1,
                "customer_id": account.id,
                "occurred_at": properties.pop("at", f"{at.isoformat()}Z"),
                "properties": properties,
            }


# --- what the marts show ------------------------------------------------------------------------------------------------


def _comparable(figure: Value) -> Any:
    if isinstance(figure, list):
        return [_comparable(part) for part in figure]
    try:
        return Decimal(figure)
    except InvalidOperation:
        return figure


def _select(marts: Marts, account: Account, table: str, of: Mapping[str, str]) -> list[Row]:
    rows = []
    for row in marts[table]:
        if row["subscription_id"] != account.id:
            continue
        own = {
            name: value.removeprefix(account.code("")) if name in CODES and value else value
            for name, value in row.items()
        }
        if all(own[name] == value for name, value in of.items()):
            rows.append(own)
    return sorted(rows, key=lambda row: [row.get(name) or "" for name in ORDER])


def _sum(rows: Sequence[Row], column: str) -> Decimal:
    return sum((Decimal(row[column]) for row in rows if row[column] is not None), Decimal(0))


def _rounded(value: Decimal, decimals: int | None) -> str:
    if decimals is not None:
        value = value.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    return format(value.normalize(), "f")


def _steps(marts: Marts, accounts: Mapping[str, Account], check: Mapping[str, Any]) -> list[str]:
    selections = check.get("of", {})
    if isinstance(selections, Mapping):
        selections = [selections] * len(accounts)
    totals = [
        _sum(_select(marts, account, "lines", of), check["steps"])
        for account, of in zip(accounts.values(), selections, strict=True)
    ]
    return [_rounded(total - before, None) for before, total in pairwise([Decimal(0), *totals])]


def _value(marts: Marts, account: Account, check: Mapping[str, Any], of: Mapping[str, str]) -> Value:
    if "balance" in check:
        grant = next(grant for grant in account.book["credit_grants"] if grant["grant_code"] == check["balance"])
        burnt = _sum(_select(marts, account, "lines", {"credit_grant_code": check["balance"], **of}), "amount")
        return _rounded(Decimal(grant["amount"]) + burnt, None)
    rows = _select(marts, account, check.get("from", "lines"), of)
    if "values" in check:
        return [str(row[check["values"]]) for row in rows]
    return _rounded(_sum(rows, check["sum"]), check.get("decimals"))


def read_figures(case: Case, marts: Marts) -> list[Figure]:
    """Every figure that a case expects, with what the marts show."""
    figures = []
    accounts = case.own_accounts
    for check in case.expected:
        kind = next(name for name in ("sum", "values", "steps", "balance") if name in check)
        source = check.get("source_is", check["is"])
        if kind == "steps":
            what = f"steps of {check['steps']} of {check.get('of', {})}"
            figures.append(Figure(what, _steps(marts, accounts, check), check["is"], source))
            continue
        of = dict(check.get("of", {}))
        for name in [of.pop("account")] if "account" in of else list(accounts):
            what = " ".join(filter(None, [name, kind, check[kind], f"of {of}" if of else ""]))
            figures.append(Figure(what, _value(marts, accounts[name], check, of), check["is"], source))
    return figures
