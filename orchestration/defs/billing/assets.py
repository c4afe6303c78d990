"""The close, closed lines into Stripe, and Stripe read back: one partition for each billing period."""

import os

import dagster as dg
from dagster_dbt import get_asset_key_for_model

from orchestration.defs.guards.checks import MEASUREMENTS
from orchestration.defs.pools import WAREHOUSE_POOL
from orchestration.defs.warehouse.assets import dbt_models
from orchestration.lib.close import close_periods
from orchestration.lib.project import read_settings
from orchestration.lib.stripe_reconcile import reconcile
from orchestration.lib.sync import guarded_sync

# The first month of the sample subscriptions.
BILLING_PERIODS = dg.MonthlyPartitionsDefinition(start_date="2023-11-01", fmt="%Y-%m-%d")


CLOSED_PERIOD = dg.AssetKey(["billing", "closed_period"])
STRIPE_INVOICE_ITEMS = dg.AssetKey(["stripe", "invoice_items"])
STRIPE_READBACK = dg.AssetKey(["stripe", "readback"])
NOBODY_IS_LEFT_BEHIND = "nobody_is_left_behind"
NOTHING_IS_LEFT_UNSENT = "nothing_is_left_unsent"
STRIPE_AGREES = "stripe_agrees"


@dg.asset(
    key=CLOSED_PERIOD,
    deps=[get_asset_key_for_model([dbt_models], "fct_pending_adjustments"), MEASUREMENTS],
    partitions_def=BILLING_PERIODS,
    group_name="billing",
    pool=WAREHOUSE_POOL,
    check_specs=[
        dg.AssetCheckSpec(
            NOBODY_IS_LEFT_BEHIND,
            asset=CLOSED_PERIOD,
            description="Earlier months are closed, for all who have lines: else metering close --period YYYY-MM.",
        )
    ],
)
def closed_period(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Close one billing period for all customers; a second run appends nothing."""
    # The bare class, since Dagster takes no other for an asset with checks.
    [report] = close_periods(read_settings(), [context.partition_key[:7]], progress=context.log.info)
    return dg.MaterializeResult(
        metadata={
            "run": report.run_id or "none: closed before",
            "customers": report.customers,
            "lines": report.lines,
            "adjustments": report.adjustments,
            "adjustments_waiting": report.waiting,
            "total_minor_units": dg.MetadataValue.json(report.totals_minor),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=NOBODY_IS_LEFT_BEHIND,
                passed=not report.earlier_open,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={
                    "not_closed": ", ".join(report.earlier_open) or "none",
                    "of_these_closed_for_others": ", ".join(report.left_behind) or "none",
                },
            )
        ],
    )


@dg.asset(
    key=STRIPE_INVOICE_ITEMS,
    deps=[
        closed_period,
        get_asset_key_for_model([dbt_models], "stripe_invoice_items"),
        get_asset_key_for_model([dbt_models], "stripe_meter_events"),
        MEASUREMENTS,
    ],
    partitions_def=BILLING_PERIODS,
    group_name="billing",
    pool=WAREHOUSE_POOL,
    check_specs=[
        dg.AssetCheckSpec(
            NOTHING_IS_LEFT_UNSENT,
            asset=STRIPE_INVOICE_ITEMS,
            description="Earlier months have nothing left to send: metering sync --period YYYY-MM sends it.",
        )
    ],
)
def stripe_invoice_items(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Send the closed lines of one billing period as invoice items or meter events; a second run sends nothing."""
    billing_period = context.partition_key[:7]
    _, meters, report = guarded_sync(read_settings(), billing_period=billing_period, progress=context.log.info)
    problems = [*meters.problems, *report.problems]
    if problems:
        raise dg.Failure(
            description=f"The sync of {billing_period} needs attention.",
            metadata={"problems": dg.MetadataValue.md("\n".join(f"- {problem}" for problem in problems))},
            allow_retries=report.unknown + meters.unknown > 0,
        )
    return dg.MaterializeResult(
        metadata={
            "account": report.stripe_account,
            "created": report.created,
            "found_in_stripe": report.confirmed_by_lookup,
            "there_already": report.already_confirmed,
            "held": report.held,
            "meter_events_sent": meters.sent,
            "meter_events_there_already": meters.already_confirmed,
            "meter_events_as_invoice_items": meters.as_items,
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=NOTHING_IS_LEFT_UNSENT,
                passed=not report.left_unsent,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"periods": ", ".join(report.left_unsent) or "none"},
            )
        ],
    )


@dg.asset(
    key=STRIPE_READBACK,
    deps=[
        stripe_invoice_items,
        get_asset_key_for_model([dbt_models], "fct_stripe_reconciliation"),
        get_asset_key_for_model([dbt_models], "fct_stripe_meter_reconciliation"),
    ],
    partitions_def=BILLING_PERIODS,
    group_name="billing",
    pool=WAREHOUSE_POOL,
    check_specs=[
        dg.AssetCheckSpec(
            STRIPE_AGREES,
            asset=STRIPE_READBACK,
            description="Events, ledger and Stripe agree: metering reconcile names what does not.",
        )
    ],
)
def stripe_readback(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Read back all that Stripe has of ours and compare; the guards of later builds judge what was read."""
    report = reconcile(read_settings(), os.environ)
    context.log.info(report.describe())
    return dg.MaterializeResult(
        metadata={"account": report.stripe_account, "invoices": len(report.invoices), "meters": len(report.meters)},
        check_results=[
            dg.AssetCheckResult(
                check_name=STRIPE_AGREES,
                passed=not (report.red or report.red_meters or report.problems),
                metadata={
                    "red_invoices": ", ".join(invoice.invoice_id for invoice in report.red) or "none",
                    "red_meters": len(report.red_meters),
                    "problems": dg.MetadataValue.md("\n".join(f"- {problem}" for problem in report.problems) or "none"),
                },
            )
        ],
    )
