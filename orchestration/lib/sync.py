"""The way to Stripe: a build that ended well, green guards, then the sync."""

from __future__ import annotations

import os

from orchestration.lib.billing_period import require_billing_period
from orchestration.lib.guards import GuardReport, run_guards
from orchestration.lib.project import MeteringError, Progress, Settings
from orchestration.lib.stripe_lock import hold_sync_lock
from orchestration.lib.stripe_meter_decisions import Decision
from orchestration.lib.stripe_meters import MeterReport, plan_events, sync_outboxes
from orchestration.lib.stripe_plan import SyncPlan, hold_unmapped, plan_sync
from orchestration.lib.stripe_settings import read_invoice_settings
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_tables import read_log
from orchestration.lib.stripe_target import open_stripe_target
from orchestration.lib.warehouse import (
    Build,
    Warehouse,
    connect,
    is_last_build,
    require_marts,
    require_successful_build,
)


def guarded_sync(
    settings: Settings, *, billing_period: str | None, progress: Progress, take_over: bool = False
) -> tuple[GuardReport, MeterReport, SyncReport]:
    """Send what the outboxes hold to Stripe, if the last build succeeded and all guards are green.

    Args:
        settings: warehouse, and the local Stripe server's state.
        billing_period: ``YYYY-MM``, or None for every period; only lines of the ledger are sent.
        progress: called with a line of text as the work goes on.
        take_over: whether to take the account's lock from a sync that may be alive.

    Raises:
        GuardBreach: a guard is red; nothing was sent.
        SyncLockError: another sync of the account is at work; nothing was sent.
        MeteringError: the last build failed, another has begun since, or the marts are missing; nothing was sent.
        StripeTargetError: the Stripe settings in the environment cannot be used; nothing was sent.
    """
    require_billing_period(billing_period)
    invoice_settings = read_invoice_settings(os.environ)
    with connect(settings) as warehouse:
        build = require_successful_build(warehouse)
        require_marts(warehouse, "stripe_invoice_items", "stripe_meter_events", "fct_guard_measurements")
        guards = run_guards(warehouse, settings.data_docs)
        guards.require_passed()
        with (
            open_stripe_target(os.environ, settings.stripe_state) as target,
            hold_sync_lock(warehouse, target.log_account, take_over=take_over) as lock,
        ):
            # Guards and Stripe took a while; the outboxes that are read next are views of seeds that a build replaces.
            _require_no_other_build(warehouse, build)
            progress(f"syncing to {target.label}, account {target.account_id}")
            return guards, *sync_outboxes(
                warehouse,
                target,
                billing_period=billing_period,
                progress=progress,
                settings=invoice_settings,
                lock=lock,
            )


def plan_without_sending(settings: Settings, *, billing_period: str | None) -> tuple[list[Decision], SyncPlan]:
    """What a sync would send now to the Stripe that the environment names; guards are not run, nothing is sent.

    Raises:
        MeteringError: the last build failed, another has begun since, or the outbox contradicts itself.
        StripeTargetError: the Stripe settings in the environment cannot be used.
    """
    require_billing_period(billing_period)
    invoice_settings = read_invoice_settings(os.environ)
    with connect(settings) as warehouse:
        build = require_successful_build(warehouse)
        require_marts(warehouse, "stripe_invoice_items", "stripe_meter_events")
        with open_stripe_target(os.environ, settings.stripe_state) as target:
            decisions, lines = plan_events(warehouse, target, billing_period, invoice_settings)
            log = read_log(warehouse, target.log_account)
            if not invoice_settings.creates_customers:
                lines = hold_unmapped(lines, log)
            _require_no_other_build(warehouse, build)
            return decisions, plan_sync(lines, log, billing_period)


def _require_no_other_build(warehouse: Warehouse, build: Build) -> None:
    if not is_last_build(warehouse, build):
        raise MeteringError(
            "Another build has begun or ended meanwhile. Nothing was sent: sync again when a build has ended well."
        )
