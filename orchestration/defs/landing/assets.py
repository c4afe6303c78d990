"""The raw tables as assets: their keys are those of the dbt sources, so that the lineage is one."""

from collections.abc import Iterator

import dagster as dg

from orchestration.defs.pools import WAREHOUSE_POOL
from orchestration.lib.landing import land_new_files, land_new_independent_totals
from orchestration.lib.project import read_settings
from orchestration.lib.warehouse import connect


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            ["raw", "usage_events"], description="Deliveries of usage events, from the files of landing/events."
        ),
        dg.AssetSpec(["raw", "load_batches"], description="What each load read and landed."),
        dg.AssetSpec(
            ["raw", "independent_totals"], description="Independent totals, from the files of landing/totals."
        ),
    ],
    group_name="landing",
    pool=WAREHOUSE_POOL,
)
def landed_files(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
    """Land the files that have not landed yet; with none there is nothing to do."""
    settings = read_settings()
    with connect(settings) as warehouse:
        batches = land_new_files(warehouse, settings.landing / "events", progress=context.log.info)
        totals = land_new_independent_totals(warehouse, settings.landing / "totals", progress=context.log.info)
    deliveries = sum(batch.deliveries for batch in batches)
    yield dg.MaterializeResult(
        asset_key=["raw", "usage_events"],
        metadata={"deliveries": deliveries, "unreadable": sum(batch.unreadable for batch in batches)},
    )
    yield dg.MaterializeResult(asset_key=["raw", "load_batches"], metadata={"batches": len(batches)})
    yield dg.MaterializeResult(asset_key=["raw", "independent_totals"], metadata={"totals": totals})
