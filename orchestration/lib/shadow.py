"""What another system billed beside our amounts, as people read it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from orchestration.lib.invoices import format_quantity
from orchestration.lib.project import MeteringError
from orchestration.lib.warehouse import Warehouse, require_marts


@dataclass(frozen=True)
class Comparison:
    """A row of fct_shadow_billing: amounts in major units, differences theirs less ours.

    ``charge_code`` is None for a whole invoice, an amount is None where the side has none.
    """

    system: str
    customer_id: str
    billing_period: str
    charge_code: str | None
    currency: str
    minor_units: int
    ours_amount: Decimal | None
    theirs_amount: Decimal | None
    difference: Decimal
    relative_difference: Decimal
    is_flagged: bool
    classification: str
    missing_side: str | None
    explanation: str


def list_comparisons(
    warehouse: Warehouse, *, system: str | None = None, billing_period: str | None = None
) -> list[Comparison]:
    """Comparisons, flagged ones first and of these the largest relative differences.

    Raises:
        MeteringError: there is no mart yet, or nothing of the system has landed.
    """
    require_marts(warehouse, "fct_shadow_billing")
    systems = [row[0] for row in warehouse.execute("select distinct system from raw.shadow_billing order by 1").rows]
    if system is not None and system not in systems:
        raise MeteringError(
            f"Nothing that {system!r} billed has landed ({', '.join(systems) or 'nor of any other system'}): "
            "land it with metering load --shadow FILE.csv, then run metering build."
        )
    rows = warehouse.execute(
        """
        select
            shadow.system,
            shadow.customer_id,
            shadow.billing_period,
            shadow.charge_code,
            shadow.currency_code as currency,
            coalesce(currencies.minor_units, 2) as minor_units,
            case when shadow.has_ours then shadow.ours_amount end as ours_amount,
            case when shadow.has_theirs then shadow.theirs_amount end as theirs_amount,
            shadow.difference,
            shadow.relative_difference,
            shadow.is_flagged,
            shadow.classification,
            shadow.missing_side,
            shadow.explanation
        from marts.fct_shadow_billing as shadow
        left join seeds.currencies as currencies
            on shadow.currency_code = currencies.currency_code
        where
            coalesce(shadow.system = $system, true)
            and coalesce(shadow.billing_period = $billing_period, true)
        order by
            shadow.is_flagged desc, shadow.relative_difference desc, shadow.system, shadow.billing_period,
            shadow.customer_id, shadow.charge_code, shadow.currency_code
        """,
        {"system": system, "billing_period": billing_period},
    ).records()
    return [Comparison(**row) for row in rows]


def format_amount(amount: Decimal | None, minor_units: int) -> str:
    """An amount with the currency's decimals, with more where it has more; ``none`` where there is none."""
    if amount is None:
        return "none"
    if amount != round(amount, minor_units):
        return format_quantity(amount)
    return f"{amount:,.{minor_units}f}"


def describe_comparison(comparison: Comparison) -> str:
    """A comparison as two lines of text: what is compared and what came out, and why."""
    amounts = [
        format_amount(amount, comparison.minor_units)
        for amount in (comparison.ours_amount, comparison.theirs_amount, comparison.difference)
    ]
    side = (
        f", missing on {'our' if comparison.missing_side == 'ours' else 'their'} side"
        if comparison.missing_side
        else ""
    )
    return (
        f"{'FLAGGED' if comparison.is_flagged else 'ok':<8}{comparison.classification:<15} "
        f"{comparison.system}  {comparison.billing_period}  {comparison.customer_id}  "
        f"{comparison.charge_code or '(invoice)'}  {comparison.currency}: "
        f"ours {amounts[0]}, theirs {amounts[1]}, difference {amounts[2]} "
        f"({comparison.relative_difference * 100:.2f} %)\n"
        f"        {comparison.explanation}{side}"
    )
