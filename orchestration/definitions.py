"""The Dagster code location."""

import dagster as dg

from orchestration.defs.billing.assets import closed_period, stripe_invoice_items, stripe_readback
from orchestration.defs.guards.checks import guards
from orchestration.defs.landing.assets import landed_files
from orchestration.defs.schedules import hourly_build, hourly_build_schedule, monthly_billing, monthly_billing_schedule
from orchestration.defs.warehouse.assets import dbt_models, dbt_resource

defs = dg.Definitions(
    assets=[landed_files, dbt_models, closed_period, stripe_invoice_items, stripe_readback],
    asset_checks=[guards],
    jobs=[hourly_build, monthly_billing],
    schedules=[hourly_build_schedule, monthly_billing_schedule],
    resources={"dbt": dbt_resource()},
)
