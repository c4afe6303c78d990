"""Every dbt seed and model as an asset, every dbt test as an asset check."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DbtCliResource, dbt_assets

from orchestration.defs.pools import WAREHOUSE_POOL
from orchestration.lib.price_book import record_price_book
from orchestration.lib.project import PROJECT_DIR, dbt_environment, ensure_manifest, read_settings
from orchestration.lib.seed_cells import require_plain_cells
from orchestration.lib.warehouse import connect

MANIFEST = ensure_manifest(read_settings())


def dbt_resource() -> DbtCliResource:
    """dbt on this project, with its own profiles."""
    return DbtCliResource(
        project_dir=str(PROJECT_DIR),
        profiles_dir=str(PROJECT_DIR / "profiles"),
        target=read_settings().target,
        # The one of this environment, also when its bin folder is not on the path.
        dbt_executable=str(Path(sys.executable).with_name("dbt")),
    )


@dbt_assets(manifest=MANIFEST, pool=WAREHOUSE_POOL)
def dbt_models(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    """dbt build of what the run selects."""
    settings = read_settings()
    require_plain_cells(settings.project)
    with connect(settings) as warehouse:
        record_price_book(warehouse, settings.project)
    with dbt_environment(settings):
        yield from dbt.cli(["build", "--exclude-resource-type", "unit_test"], context=context).stream()
