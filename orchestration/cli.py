"""The command line: metering load, build, check, close, adjustments, sync, invoices, explain, demo.

Exit codes: 0 all well; 1 something failed or a guard is red, with the reason on standard error; 2 wrong usage.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from orchestration.lib.adjustments import describe_adjustment, list_pending_adjustments, rows_to_approve
from orchestration.lib.close import close_periods
from orchestration.lib.demo import run_demo
from orchestration.lib.explain import explain_line
from orchestration.lib.guards import run_guards
from orchestration.lib.invoices import describe_invoice, list_invoices
from orchestration.lib.landing import expand_patterns, land_files, land_independent_totals
from orchestration.lib.project import MeteringError, build, read_settings
from orchestration.lib.stripe_sync import describe_plan
from orchestration.lib.sync import guarded_sync, plan_without_sending
from orchestration.lib.warehouse import Warehouse, connect, require_successful_build


class _Instant(click.ParamType[str]):
    """An ISO 8601 date and time, taken as UTC when it has no offset; given on as UTC text for dbt."""

    name = "instant"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            instant = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not an ISO 8601 date and time such as 2026-11-01T00:00:00Z", param, ctx)
        instant = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
        return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Usage metering in the warehouse: land events, build marts, check them, sync invoices to Stripe.

    The warehouse is the DuckDB file METERING_DUCKDB_PATH (data/metering.duckdb), or with METERING_TARGET=prod
    the Snowflake database that the SNOWFLAKE_ variables of profiles/profiles.yml name. Stripe is a local server unless
    STRIPE_API_KEY is set; a live key also needs METERING_STRIPE_LIVE=1.
    """


@cli.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--totals", is_flag=True, help="The files are CSV files of independent totals, not usage events.")
def load(files: tuple[str, ...], totals: bool) -> None:
    """Land FILES (or quoted globs) of usage events: .jsonl, .ndjson, .json, .csv, also .gz, and .parquet.

    Each file is a batch. Loading a file twice is safe: copies of an event count once.
    """
    paths = expand_patterns(files)
    with connect(read_settings()) as warehouse:
        if totals:
            for path in paths:
                land_independent_totals(warehouse, path, progress=click.echo)
        else:
            batches = land_files(warehouse, paths, progress=click.echo)
            deliveries = sum(batch.deliveries for batch in batches)
            click.echo(f"{deliveries:,} deliveries in {len(batches)} batches; next: metering build")


@cli.command(name="build")
@click.option("--full-refresh", is_flag=True, help="Rebuild everything from the raw table.")
@click.option(
    "--as-of", type=_Instant(), help="See only deliveries received until this instant (UTC unless it has an offset)."
)
def build_command(full_refresh: bool, as_of: str | None) -> None:
    """Build and test seeds and models with dbt."""
    seconds = build(read_settings(), as_of=as_of, full_refresh=full_refresh)
    click.echo(f"built in {seconds:.1f} s; next: metering check, metering invoices, metering sync")


@cli.command()
def check() -> None:
    """Run the guards and write Data Docs. Exits with 1 when a guard is red."""
    settings = read_settings()
    with connect(settings) as warehouse:
        report = run_guards(warehouse, settings.data_docs)
    for outcome in report.outcomes:
        click.echo(outcome.describe())
    click.echo(f"Data Docs: {report.data_docs}")
    if not report.passed:
        raise MeteringError("Guards failed: metering sync would send nothing.")


@cli.command()
@click.option("--period", metavar="YYYY-MM", help="The billing period to close.")
@click.option("--all-due", is_flag=True, help="Close every period that is over with its grace, the earliest first.")
@click.option("--customer", "customers", multiple=True, metavar="ID", help="Only this customer; may be repeated.")
@click.option(
    "--adjustments", is_flag=True, help="Bill what has changed of closed periods now, on invoices of the closed --period."
)
@click.option(
    "--force", "forced_reason", metavar="REASON", help="In spite of a red guard or events within grace; recorded."
)
def close(
    period: str | None, all_due: bool, customers: tuple[str, ...], adjustments: bool, forced_reason: str | None
) -> None:
    """Close a billing period: append its lines, and adjustments that are ready, to the ledger.

    Refused while a guard is red, the period or its grace is not over, or the seeds have changed since the last build.
    Closing a period again appends nothing. What changes afterwards becomes adjustments on later invoices.
    """
    if (period is None) is not all_due or (all_due and (customers or adjustments)):
        raise click.UsageError("Give --period YYYY-MM, or --all-due without --customer and --adjustments.")
    reports = close_periods(
        read_settings(),
        None if period is None else [period],
        customers=customers,
        adjustments_only=adjustments,
        forced_reason=forced_reason,
        progress=click.echo,
    )
    if not reports:
        click.echo("No billing period is due that is not closed.")


@cli.command()
@click.option("--customer", metavar="ID", help="Only this customer.")
def adjustments(customer: str | None) -> None:
    """Print what has changed of closed periods and is not billed yet, and the rows that would approve new prices."""
    with connect(read_settings()) as warehouse:
        _warn_of_unfinished_build(warehouse)
        found = list_pending_adjustments(warehouse, customer_id=customer)
    for adjustment in found:
        click.echo(describe_adjustment(adjustment))
    if not found:
        click.echo("No adjustments: what is rated now is what the ledger holds.")
    to_approve = rows_to_approve(found)
    if to_approve:
        click.echo("\nto approve, add to seeds/policy/rerating_approvals.csv with your name, the day and the reason:")
        for row in to_approve:
            click.echo(row)


@cli.command()
@click.option("--period", metavar="YYYY-MM", help="Only this billing period; by default all that are closed.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent; send nothing, and do not run the guards.")
def sync(period: str | None, dry_run: bool) -> None:
    """Send closed invoice lines to Stripe as items of draft invoices, each once, if the guards are green.

    Lines of a metric that finance has not confirmed are held back.
    """
    if dry_run:
        click.echo(describe_plan(plan_without_sending(read_settings(), billing_period=period)))
        return
    guards, report = guarded_sync(read_settings(), billing_period=period, progress=click.echo)
    for outcome in guards.outcomes:
        click.echo(outcome.describe())
    click.echo(
        f"lines: {report.created} created, {report.confirmed_by_lookup} found in Stripe, "
        f"{report.already_confirmed} there already, {report.held} held, {report.blocked} blocked, "
        f"{report.failed} failed, "
        f"{report.changed_after_sync} changed after they were sent; {report.finalized} invoices finalised"
    )
    if not report.is_clean:
        raise MeteringError("\n".join(["The sync needs attention:", *report.problems]))


def _warn_of_unfinished_build(warehouse: Warehouse) -> None:
    """What is printed may come from several builds when the last one failed: say so, on standard error."""
    try:
        require_successful_build(warehouse)
    except MeteringError as error:
        click.echo(f"warning: {error}", err=True)


@cli.command()
@click.option("--customer", metavar="ID", help="Only this customer.")
@click.option("--period", metavar="YYYY-MM", help="Only this billing period.")
def invoices(customer: str | None, period: str | None) -> None:
    """Print draft invoices with their lines; metering explain takes the id in front of a line."""
    with connect(read_settings()) as warehouse:
        _warn_of_unfinished_build(warehouse)
        found = list_invoices(warehouse, customer_id=customer, billing_period=period)
    for invoice in found:
        click.echo(describe_invoice(invoice))
    if not found:
        click.echo("No invoices. fct_unbilled_usage says what was metered and not priced.")


@cli.command()
@click.argument("line_id")
@click.option("--events", is_flag=True, help="List the events behind the line, too.")
def explain(line_id: str, events: bool) -> None:
    """Explain the invoice line LINE_ID: price, tiers, entitlement, events, and the SQL that lists them.

    The beginning of the id, as metering invoices prints it, is enough.
    """
    with connect(read_settings()) as warehouse:
        _warn_of_unfinished_build(warehouse)
        explanation = explain_line(warehouse, line_id)
        click.echo(explanation.text)
        if events and explanation.events_sql is not None:
            click.echo("\nevents:")
            for key, occurred_at, properties in warehouse.execute(explanation.events_sql).fetchall():
                click.echo(f"{occurred_at.isoformat(sep=' ')}  {key}  {properties}")


@cli.command()
@click.option(
    "--events", multiple=True, metavar="FILE", help="Events to use instead of the generated ones; may be repeated."
)
@click.option(
    "--totals",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Independent totals for these events.",
)
def demo(events: tuple[str, ...], totals: Path | None) -> None:
    """Run everything once, in a warehouse of its own (data/demo), up to draft invoices in the local Stripe server."""
    run_demo(events, totals, progress=click.echo)


def main() -> None:
    """Entry point: errors that a user can act on are printed as such, without a traceback."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("Aborted.", err=True)
        sys.exit(1)
    except MeteringError as error:
        click.echo(f"metering: {error}", err=True)
        sys.exit(1)
