"""Brings the rated lines of the outbox mart into Stripe as draft invoices with items, each exactly once.

`marts.stripe_invoice_items` lists what should be in Stripe. `ops.stripe_sync_log`, to which rows are only
added, lists what was tried and what came back, per Stripe account. Around every call that creates something
there are two rows for each object: an intent, durable before the call, and an outcome after it. A crash, a lost
answer or a 5xx leaves an intent unconfirmed; the next run then looks in Stripe for the object by its metadata
before it creates anything, because Stripe may have forgotten the idempotency key by that time.

Lines go to Stripe many in one call. Lines of a call without a known outcome go together again, so that the call has
the same idempotency key; a call that is refused is taken apart until the line at fault stands alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

from orchestration.lib.stripe_errors import StripeSyncError
from orchestration.lib.stripe_lock import SyncLock, hold_sync_lock
from orchestration.lib.stripe_plan import describe_unmapped, hold_unmapped, plan_sync
from orchestration.lib.stripe_run import Run
from orchestration.lib.stripe_settings import InvoiceSettings
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_tables import OutboxLine, read_log, read_outbox
from orchestration.lib.stripe_target import StripeTarget
from orchestration.lib.warehouse import OpenTransactionError, Warehouse


def sync_invoice_items(
    warehouse: Warehouse,
    target: StripeTarget,
    *,
    billing_period: str | None,
    progress: Callable[[str], None],
    settings: InvoiceSettings | None = None,
    sleep: Callable[[float], None] = time.sleep,
    lines: list[OutboxLine] | None = None,
    lock: SyncLock | None = None,
) -> SyncReport:
    """Send every line of the outbox that may be sent and is not confirmed in this account.

    Args:
        warehouse: an open warehouse with the outbox and the log, and no transaction open.
        target: the Stripe to send to.
        billing_period: such as `2026-10`, to send only its lines; None for all. Confirmed lines that are gone
            from the outbox are reported whatever the period, since the log does not know it.
        progress: called with a sentence per invoice, and per call of one that takes several.
        settings: how invoices are made; drafts by default.
        sleep: waits the given seconds; called when Stripe limits the rate.
        lines: the outbox, where meters take some of it; by default as the mart has it.
        lock: of the account, held by the caller; by default it is taken here.

    Returns:
        The report. Outcomes that stay unknown end the run early; the next run resolves them.

    Raises:
        StripeSyncError: a table is missing, the outbox contradicts itself, or a transaction is open.
        SyncLockError: another sync of the account is at work, or has taken over from this one.
    """
    try:
        with hold_sync_lock(warehouse, target.log_account) if lock is None else nullcontext(lock) as held:
            outbox = read_outbox(warehouse) if lines is None else lines
            return _sync(
                warehouse, target, outbox, billing_period, progress, settings or InvoiceSettings(), sleep, held
            )
    except OpenTransactionError as error:
        raise StripeSyncError(
            "The warehouse connection has a transaction open, so the sync log would not be durable "
            "before the call to Stripe. Commit or roll back first."
        ) from error


def _sync(
    warehouse: Warehouse,
    target: StripeTarget,
    lines: list[OutboxLine],
    billing_period: str | None,
    progress: Callable[[str], None],
    settings: InvoiceSettings,
    sleep: Callable[[float], None],
    lock: SyncLock,
) -> SyncReport:
    log = read_log(warehouse, target.log_account)
    plan = plan_sync(lines if settings.creates_customers else hold_unmapped(lines, log), log, billing_period)
    for text in describe_unmapped(plan):
        progress(text)
    report = SyncReport(
        target.log_account,
        already_confirmed=plan.already_confirmed,
        held=plan.held,
        blocked=sum(len(group.lines) for group in plan.blocked),
        changed_after_sync=len(plan.changes),
        problems=[str(change) for change in plan.changes]
        + [
            f"invoice {group.invoice_id}: {len(group.lines)} new lines were not sent, because others of its customer "
            "and billing period have changed after they were sent, and these may be the same usage."
            for group in plan.blocked
        ],
        changes=plan.changes,
        left_unsent=plan.left_unsent,
    )
    run = Run(warehouse, target, settings, log, report, progress, sleep, lock)
    if run.send(plan.groups):
        run.finalize(plan.complete)
    return report
