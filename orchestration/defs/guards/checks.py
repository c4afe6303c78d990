"""The guards as blocking asset checks: what depends on the measurements does not run when one is red."""

from collections.abc import Iterator

import dagster as dg
from dagster_dbt import get_asset_key_for_model

from orchestration.defs.pools import WAREHOUSE_POOL
from orchestration.defs.warehouse.assets import dbt_models
from orchestration.lib.guards import run_guards
from orchestration.lib.project import read_settings
from orchestration.lib.warehouse import connect

GUARDS = ("accuracy", "dropped_events", "ingestion_error_rate", "stripe_amount", "stripe_ratio")
MEASUREMENTS = get_asset_key_for_model([dbt_models], "fct_guard_measurements")


@dg.multi_asset_check(
    specs=[dg.AssetCheckSpec(name=guard, asset=MEASUREMENTS, blocking=True) for guard in GUARDS], pool=WAREHOUSE_POOL
)
def guards() -> Iterator[dg.AssetCheckResult]:
    """Great Expectations over fct_guard_measurements, one check for each guard."""
    settings = read_settings()
    with connect(settings) as warehouse:
        report = run_guards(warehouse, settings.data_docs)
    outcomes = {outcome.guard_code: outcome for outcome in report.outcomes}
    for guard in GUARDS:
        outcome = outcomes.get(guard)
        yield dg.AssetCheckResult(
            check_name=guard,
            asset_key=MEASUREMENTS,
            passed=outcome is not None and outcome.passed,
            description="guard_thresholds.csv lacks this guard" if outcome is None else outcome.describe(),
            metadata={"data_docs": dg.MetadataValue.path(str(report.data_docs))},
        )
