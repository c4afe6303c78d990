"""Another price book over real history, beside the one in force.

Only what prices decide is built again: the pricing seeds that were given and the models behind them, up to rated lines.
Everything else is read where the present has it. Hourly usage, which depends on prices only where one begins or ends
inside an hour, is copied and brought up to date by an ordinary build, which equals building it anew.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestration.lib.billing_period import require_billing_period
from orchestration.lib.price_book import price_book_hash, seed_columns
from orchestration.lib.project import MeteringError, Progress, Settings
from orchestration.lib.scenario import Scenario, beside_the_present
from orchestration.lib.seed_cells import require_plain_cells
from orchestration.lib.warehouse import Build, Warehouse, connect, require_marts, require_successful_build

PRICING = "pricing"

# What a price book comes to, with the two marts that make the books of usage and of lines balance.
_TARGETS = ("fct_rated_lines", "fct_rated_line_tiers", "fct_unbilled_usage")
# Documentation that lies beside seeds.
_NOT_SEEDS = (".yml", ".yaml", ".md")


@dataclass(frozen=True)
class Difference:
    """What an item of a customer costs in a billing period, in both price books.

    Attributes:
        line_type: usage, flat, minimum, commitment or credit.
        item_code: the charge, commitment or credit grant.
        minor_units: decimals of the currency.
        quantity_now, quantity_then: billable quantity in the price book in force and in the other; None without lines.
        amount_minor_now, amount_minor_then: amounts in minor units; None without lines.
    """

    customer_id: str
    customer_name: str | None
    line_type: str
    item_code: str
    billing_period: str
    currency: str
    minor_units: int
    quantity_now: Decimal | None
    quantity_then: Decimal | None
    amount_minor_now: int | None
    amount_minor_then: int | None

    @property
    def difference_minor(self) -> int:
        return (self.amount_minor_then or 0) - (self.amount_minor_now or 0)

    @property
    def is_changed(self) -> bool:
        return (self.quantity_now, self.amount_minor_now) != (self.quantity_then, self.amount_minor_then)


@dataclass(frozen=True)
class WhatIf:
    """A price book beside the one in force.

    Attributes:
        name: of the scenario.
        seeds: names of the seeds that were given.
        from_period, to_period: first and last billing period that was compared.
        as_of: what both have seen: deliveries received until then, UTC.
        differences: every customer, item, billing period and currency, unchanged ones too.
        schemas: prefix of the schemas that were kept; None when they were dropped.
    """

    name: str
    seeds: tuple[str, ...]
    from_period: str
    to_period: str
    as_of: datetime
    differences: tuple[Difference, ...]
    schemas: str | None


def what_if(
    settings: Settings,
    price_book: Path,
    *,
    from_period: str | None,
    to_period: str | None,
    name: str,
    keep: bool = False,
    progress: Progress,
) -> WhatIf:
    """Rate real history with another price book and set it beside the one in force.

    What is found is appended to ops.what_if_lines, of which fct_what_if shows the latest of each name. Nothing else of
    the present changes.

    Args:
        settings: the warehouse.
        price_book: folder with CSV files of the pricing seeds; one that is not there is taken from the present.
        from_period, to_period: first and last billing period to compare, ``YYYY-MM``; None for no bound.
        name: of the scenario; the schemas and the rows of fct_what_if are called after it.
        keep: leave the scenario's schemas in the warehouse.
        progress: called with a line of text as the work goes on.

    Raises:
        BuildError: the price book breaks a rule; what was printed names file, row and rule.
        MeteringError: a file or column is not known, a cell is not plain, a period is none, or the present has no
            successful build.
    """
    _check_periods(from_period, to_period)
    seeds = _read_price_book(price_book, settings.project / "seeds" / PRICING)
    with connect(settings) as warehouse:
        present = require_successful_build(warehouse)
        require_marts(warehouse, "fct_rated_lines", "dim_customers")
    with beside_the_present(settings, "whatif", name, keep=keep) as scenario:
        for seed, path in seeds.items():
            shutil.copy(path, scenario.seeds / PRICING / f"{seed}.csv")
        require_plain_cells(scenario.settings.project)
        manifest = scenario.present_manifest(as_of=present.as_of)
        nodes = json.loads(manifest.read_text(encoding="utf-8"))
        models = _models_behind(nodes, list(seeds))
        _copy_incremental_models(scenario, models)
        progress(f"rating with {', '.join(seeds)} of {price_book}: {len(models)} models, as of {present.as_of} UTC")
        scenario.build(
            *("--select", *seeds, *(model["name"] for model in models)),
            # Tests whose other tables are the present's, and so hold other prices, would compare apples with pears.
            *("--indirect-selection", "buildable", "--exclude-resource-type", "unit_test"),
            *("--defer", "--favor-state", "--state", str(manifest.parent)),
            as_of=present.as_of,
            progress=progress,
        )
        bounds = (from_period or "0000-00", to_period or "9999-99")
        digest = price_book_hash(scenario.settings.project)
        with connect(settings) as warehouse:
            with warehouse.transaction():
                what_if_id = _record(
                    warehouse, scenario, name, digest, present, bounds, has_currencies="currencies" in seeds
                )
                if require_successful_build(warehouse) != present:
                    raise MeteringError(
                        "The present was built again meanwhile, so the two sides have not seen the same events: "
                        "run metering whatif again."
                    )
            differences = _read(warehouse, what_if_id)
    if not differences:
        raise MeteringError(
            f"Neither price book has lines in the billing periods from {from_period or 'the first'} "
            f"to {to_period or 'the last'}."
        )
    periods = [difference.billing_period for difference in differences]
    return WhatIf(
        name=name,
        seeds=tuple(sorted(seeds)),
        from_period=from_period or min(periods),
        to_period=to_period or max(periods),
        as_of=present.as_of,
        differences=tuple(differences),
        schemas=scenario.prefix if keep else None,
    )


def _check_periods(from_period: str | None, to_period: str | None) -> None:
    require_billing_period(from_period)
    require_billing_period(to_period)
    if from_period and to_period and from_period > to_period:
        raise MeteringError(f"--from {from_period} --to {to_period}: the first billing period lies after the last.")


def _read_price_book(folder: Path, present: Path) -> dict[str, Path]:
    """The seeds in a folder, by name, with the columns that the present's have.

    Raises:
        MeteringError: the folder has no seed, one that is not known, or columns that do not fit.
    """
    known = {path.stem: path for path in sorted(present.glob("*.csv"))}
    seeds: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix in _NOT_SEEDS:
            continue
        if path.suffix != ".csv" or path.stem not in known:
            raise MeteringError(
                f"{path} is no file of a price book. Known are: {', '.join(f'{seed}.csv' for seed in known)}."
            )
        columns, expected = seed_columns(path), seed_columns(known[path.stem])
        unknown = [column for column in columns if column not in expected]
        missing = [column for column in expected if column not in columns]
        if unknown:
            raise MeteringError(f"{path} has unknown columns: {', '.join(unknown)}. Known are: {', '.join(expected)}.")
        if missing:
            raise MeteringError(f"{path} lacks columns: {', '.join(missing)}.")
        if len(columns) != len(set(columns)):
            raise MeteringError(f"{path} names a column twice: {', '.join(columns)}.")
        seeds[path.stem] = path
    if not seeds:
        raise MeteringError(
            f"{folder} has no file of a price book. Known are: {', '.join(f'{seed}.csv' for seed in known)}."
        )
    return seeds


def _models_behind(manifest: Mapping[str, Any], seeds: Sequence[str]) -> list[dict[str, Any]]:
    """The models of dbt's manifest that are built from seeds, directly or not, as far as _TARGETS need them."""
    nodes = manifest["nodes"]

    def reached(names: Sequence[str], edges: Mapping[str, Sequence[str]]) -> set[str]:
        found: set[str] = set()
        ahead = [node_id for node_id, node in nodes.items() if node["name"] in names]
        while ahead:
            node_id = ahead.pop()
            if node_id in nodes and node_id not in found:
                found.add(node_id)
                ahead += edges[node_id]
        return found

    chosen = reached(seeds, manifest["child_map"]) & reached(_TARGETS, manifest["parent_map"])
    return [nodes[node_id] for node_id in sorted(chosen) if nodes[node_id]["resource_type"] == "model"]


def _copy_incremental_models(scenario: Scenario, models: Sequence[Mapping[str, Any]]) -> None:
    with connect(scenario.settings) as warehouse:
        for model in models:
            if model["config"]["materialized"] == "incremental":
                schema = scenario.schema(model["schema"])
                warehouse.execute(f"create schema if not exists {schema}")
                warehouse.copy_table(f"{model['schema']}.{model['alias']}", f"{schema}.{model['alias']}")


def _record(
    warehouse: Warehouse,
    scenario: Scenario,
    name: str,
    digest: str,
    present: Build,
    bounds: tuple[str, str],
    *,
    has_currencies: bool,
) -> str:
    """Append both sides to ops.what_if_lines, in one statement; the id of what was appended."""
    what_if_id = uuid.uuid4().hex
    lines = """
        select
            customer_id,
            line_type,
            coalesce(
                case line_type when 'credit' then credit_grant_code when 'commitment' then commitment_code end,
                charge_code
            ) as item_code,
            billing_period,
            currency_code,
            sum(billable_quantity) as quantity,
            sum(amount) as amount,
            sum(amount_minor) as amount_minor
        from {schema}.fct_rated_lines
        where billing_period between $from_period and $to_period
        group by 1, 2, 3, 4, 5
    """
    currencies = scenario.schema("seeds") if has_currencies else "seeds"
    warehouse.execute(
        f"""
        insert into ops.what_if_lines
        with present_lines as ({lines.format(schema="marts")}),
        scenario_lines as ({lines.format(schema=scenario.schema("marts"))})
        select
            $what_if_id,
            $name,
            $digest,
            cast($as_of as datetime),
            cast($recorded_at as datetime),
            coalesce(present_lines.customer_id, scenario_lines.customer_id) as line_customer_id,
            customers.customer_name,
            coalesce(present_lines.line_type, scenario_lines.line_type),
            coalesce(present_lines.item_code, scenario_lines.item_code),
            coalesce(present_lines.billing_period, scenario_lines.billing_period),
            coalesce(present_lines.currency_code, scenario_lines.currency_code),
            currencies.minor_units,
            cast(present_lines.quantity as decimal(38, 9)),
            cast(scenario_lines.quantity as decimal(38, 9)),
            cast(present_lines.amount as decimal(28, 4)),
            cast(scenario_lines.amount as decimal(28, 4)),
            cast(present_lines.amount_minor as bigint),
            cast(scenario_lines.amount_minor as bigint)
        from present_lines
        full outer join scenario_lines
            on
                present_lines.customer_id = scenario_lines.customer_id
                and present_lines.line_type = scenario_lines.line_type
                and present_lines.item_code = scenario_lines.item_code
                and present_lines.billing_period = scenario_lines.billing_period
                and present_lines.currency_code = scenario_lines.currency_code
        left join {currencies}.currencies as currencies
            on coalesce(present_lines.currency_code, scenario_lines.currency_code) = currencies.currency_code
        left join marts.dim_customers as customers
            on coalesce(present_lines.customer_id, scenario_lines.customer_id) = customers.customer_id
        """,
        {
            "what_if_id": what_if_id,
            "name": name,
            "digest": digest,
            "as_of": str(present.as_of),
            "recorded_at": str(datetime.now(UTC).replace(tzinfo=None)),
            "from_period": bounds[0],
            "to_period": bounds[1],
        },
    )
    return what_if_id


def _read(warehouse: Warehouse, what_if_id: str) -> list[Difference]:
    rows = warehouse.execute(
        """
        select
            customer_id, customer_name, line_type, item_code, billing_period, currency_code, minor_units,
            quantity_now, quantity_then, amount_minor_now, amount_minor_then
        from ops.what_if_lines
        where what_if_id = ?
        order by
            currency_code, customer_id, billing_period,
            case line_type when 'credit' then 3 when 'commitment' then 2 else 1 end, item_code, line_type
        """,
        [what_if_id],
    ).rows
    return [Difference(*row) for row in rows]
