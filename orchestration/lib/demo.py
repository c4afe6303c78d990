"""The demo: from raw events to draft invoices in the local Stripe server, in a warehouse of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestration.lib.close import close_periods
from orchestration.lib.demo_events import write_demo_data
from orchestration.lib.invoices import Invoice, compare_with_stripe, format_minor, list_invoices
from orchestration.lib.landing import expand_patterns, land_files, land_independent_totals
from orchestration.lib.project import PROJECT_DIR, MeteringError, Progress, Settings, build
from orchestration.lib.stripe_readback import StripeInvoice, read_back_invoices
from orchestration.lib.stripe_target import open_stripe_target
from orchestration.lib.sync import guarded_sync
from orchestration.lib.warehouse import connect

DEMO_FOLDER = PROJECT_DIR / "data" / "demo"


class DemoDisagreement(MeteringError):
    """Invoices in the warehouse and in Stripe are not the same."""


def run_demo(events: Sequence[str], totals: Path | None, *, progress: Progress) -> None:
    """Load, build, close, check, sync, sync again, and compare each invoice with Stripe.

    Args:
        events: files or globs to load instead of the generated data set.
        totals: independent totals to load with them.
        progress: called with a line of text as the work goes on.

    Raises:
        MeteringError: a step failed, or an invoice is not the same in Stripe. GuardBreach among them.
    """
    settings = Settings(database=DEMO_FOLDER / "demo.duckdb", target="dev")
    paths = expand_patterns(events) if events else []
    periods: Sequence[str] | None = None
    _start_afresh(settings)
    if not paths:
        progress("== generate: a data set with copies, conflicts and malformed deliveries, the same each time")
        data = write_demo_data(DEMO_FOLDER / "events")
        paths, totals = list(data.event_files), data.independent_totals
        # Whatever today's month is, so that the demo prints the same each time.
        periods = data.billing_periods

    progress("== load")
    with connect(settings) as warehouse:
        land_files(warehouse, paths, progress=progress)
        if totals is not None:
            land_independent_totals(warehouse, totals, progress=progress)

    progress("== build: dbt builds and tests seeds and models")
    seconds = build(settings, quiet=True)
    progress(f"built in {seconds:.1f} s")
    _describe_deliveries(settings, progress)

    progress("== close: what is due becomes lines of the ledger")
    runs = close_periods(settings, periods, progress=lambda _: None)
    progress(f"{len(runs)} billing runs, {sum(run.lines for run in runs)} lines; of the last: {runs[-1].describe()}")

    progress("== check and sync to the local Stripe server")
    # The demo never leaves this machine, whatever key the environment holds.
    os.environ.pop("STRIPE_API_KEY", None)
    guards, _, first = guarded_sync(settings, billing_period=None, progress=progress)
    for outcome in guards.outcomes:
        progress(outcome.describe())
    progress(f"first sync: {first.created} lines created, {first.held} held, {len(first.problems)} problems")
    *_, second = guarded_sync(settings, billing_period=None, progress=lambda _: None)
    progress(f"second sync: {second.created} lines created, {second.already_confirmed} there already")

    progress("== invoices")
    with connect(settings) as warehouse, open_stripe_target({}, settings.stripe_state) as target:
        closed = {run.billing_period for run in runs}
        invoices = [invoice for invoice in list_invoices(warehouse) if invoice.billing_period in closed]
        in_stripe = read_back_invoices(target)
    _compare(invoices, in_stripe, progress)
    progress(f"Data Docs: {guards.data_docs}")
    progress(
        f"One invoice line by line: METERING_DUCKDB_PATH={settings.database} .venv/bin/metering invoices "
        f"--customer {invoices[0].customer_id if invoices else 'cus_000'}"
    )
    if first.problems or second.problems or second.created:
        raise DemoDisagreement("\n".join(["The sync was not clean:", *first.problems, *second.problems]))


def _start_afresh(settings: Settings) -> None:
    settings.database.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(settings.ledger_exports, ignore_errors=True)
    for path in (settings.database, Path(f"{settings.database}.wal"), settings.stripe_state):
        path.unlink(missing_ok=True)


def _describe_deliveries(settings: Settings, progress: Progress) -> None:
    with connect(settings) as warehouse:
        row = warehouse.execute(
            "select sum(deliveries), sum(accepted), sum(duplicates), sum(conflicts), sum(rejected), sum(dropped) "
            "from marts.fct_ingestion_health"
        ).fetchone()
        unbilled = warehouse.execute(
            "select reason_code, metric_code, sum(event_count) from marts.fct_unbilled_usage group by all order by all"
        ).fetchall()
    assert row is not None
    deliveries, accepted, duplicates, conflicts, rejected, dropped = row
    progress(
        f"{deliveries:,} deliveries = {accepted:,} accepted + {duplicates:,} duplicates ({conflicts:,} conflicting) "
        f"+ {rejected:,} rejected, {dropped:,} dropped"
    )
    for reason, metric, events in unbilled:
        progress(f"unbilled ({reason}): {metric}, {events:,} events")


def _compare(invoices: Sequence[Invoice], in_stripe: Sequence[StripeInvoice], progress: Progress) -> None:
    progress(f"{'invoice':<26}{'lines':>6}{'total':>16}{'to send':>16}{'in Stripe':>16}")
    disagreeing = []
    for invoice, sent_minor, agrees in compare_with_stripe(invoices, in_stripe):
        sent = "-" if sent_minor is None else format_minor(sent_minor, invoice.minor_units)
        progress(
            f"{invoice.invoice_id:<26}{len(invoice.lines):>6}"
            f"{format_minor(invoice.total_minor, invoice.minor_units):>16}"
            f"{format_minor(invoice.sendable_minor, invoice.minor_units):>16}{sent:>16}{'' if agrees else '  DIFFERS'}"
        )
        if not agrees:
            disagreeing.append(invoice.invoice_id)
    foreign = sorted({draft.metering_invoice_id for draft in in_stripe} - {invoice.invoice_id for invoice in invoices})
    if disagreeing or foreign:
        raise DemoDisagreement(
            f"Not the same in Stripe: {', '.join(disagreeing) or 'none'}; "
            f"in Stripe alone: {', '.join(foreign) or 'none'}."
        )
    progress(f"{len(invoices)} invoices agree with Stripe to the minor unit")
