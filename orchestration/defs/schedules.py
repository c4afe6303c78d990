"""Jobs and their schedules."""

import dagster as dg

from orchestration.defs.billing.assets import BILLING_PERIODS, closed_period, stripe_invoice_items, stripe_readback

_NOT_BILLING = dg.AssetSelection.all() - dg.AssetSelection.assets(closed_period, stripe_invoice_items, stripe_readback)

hourly_build = dg.define_asset_job(
    "hourly_build",
    selection=_NOT_BILLING,
    executor_def=dg.in_process_executor,
    description="Land new files, build and test all models, run the guards.",
)

monthly_billing = dg.define_asset_job(
    "monthly_billing",
    selection=dg.AssetSelection.all(),
    partitions_def=BILLING_PERIODS,
    executor_def=dg.in_process_executor,
    description="Build, check, close a month, send its lines to Stripe, and read Stripe back.",
)

hourly_build_schedule = dg.ScheduleDefinition(
    job=hourly_build,
    cron_schedule="5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
)

# The last month on earth ends at 12:00 UTC on the 1st (UTC-12), and 24 hours of grace follow. Not on the full hour,
# when the task of docs/snowflake/landing.sql moves what was received before: a build beside it might not see that yet.
monthly_billing_schedule = dg.build_schedule_from_partitioned_job(
    monthly_billing, day_of_month=2, hour_of_day=13, minute_of_hour=30, default_status=dg.DefaultScheduleStatus.STOPPED
)
