"""The command line: metering, with the commands that metering --help lists.

Exit codes: 0 all well; 1 something failed or a guard is red, with the reason on standard error; 2 wrong usage.
"""

from __future__ import annotations

import gc
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from orchestration.lib.adjustments import describe_adjustment, list_pending_adjustments, rows_to_approve
from orchestration.lib.billing_period import require_billing_period
from orchestration.lib.close import close_periods
from orchestration.lib.demo import run_demo
from orchestration.lib.explain import explain_line
from orchestration.lib.guards import run_guards
from orchestration.lib.invoices import describe_invoice, list_invoices
from orchestration.lib.landing import expand_patterns, land_files, land_independent_totals, land_shadow_billing
from orchestration.lib.past import rebuild_as_of, reproduce_runs
from orchestration.lib.project import MeteringError, build, read_settings
from orchestration.lib.scenario import drop_scenario, name_from
from orchestration.lib.shadow import describe_comparison, list_comparisons
from orchestration.lib.statement import write_statement
from orchestration.lib.stripe_meter_decisions import describe_events
from orchestration.lib.stripe_plan import describe_plan
from orchestration.lib.stripe_reconcile import reconcile as reconcile_with_stripe
from orchestration.lib.sync import guarded_sync, plan_without_sending
from orchestration.lib.warehouse import Warehouse, connect, require_successful_build
from orchestration.lib.what_if import what_if
from orchestration.lib.what_if_report import FORMATS, describe


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


class _BillingPeriod(click.ParamType[str]):
    """A billing period."""

    name = "YYYY-MM"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            require_billing_period(value)
        except MeteringError as error:
            self.fail(str(error), param, ctx)
        return value


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
@click.option("--shadow", is_flag=True, help="The files are CSV files of what another system billed, not usage events.")
def load(files: tuple[str, ...], totals: bool, shadow: bool) -> None:
    """Land FILES (or quoted globs) of usage events: .jsonl, .ndjson, .json, .csv, also .gz, and .parquet.

    Each file is a batch. Loading a file twice is safe: copies of an event count once.
    """
    if totals and shadow:
        raise click.UsageError(
            "--totals and --shadow exclude each other: load the two kinds of file one after the other."
        )
    paths = expand_patterns(files)
    with connect(read_settings()) as warehouse:
        if totals or shadow:
            for path in paths:
                (land_shadow_billing if shadow else land_independent_totals)(warehouse, path, progress=click.echo)
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
    click.echo(f"built in {seconds:.1f} s; next: metering check, metering invoices, metering close, metering sync")


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
        raise MeteringError("Guards failed: metering close would close nothing, and metering sync send nothing.")


@cli.command()
@click.option("--period", type=_BillingPeriod(), help="The billing period to close.")
@click.option("--all-due", is_flag=True, help="Close every period that is over with its grace, the earliest first.")
@click.option("--customer", "customers", multiple=True, metavar="ID", help="Only this customer; may be repeated.")
@click.option(
    "--adjustments",
    is_flag=True,
    help="Bill what has changed of closed periods now, on invoices of the closed --period.",
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
        click.echo("\nto approve, add to seeds/policy/rerating_approvals.csv with who, the day, and why:")
        for row in to_approve:
            click.echo(row)


@cli.command()
@click.option("--period", type=_BillingPeriod(), help="Only this billing period; by default all that are closed.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent; send nothing, and do not run the guards.")
@click.option(
    "--take-over", is_flag=True, help="Begin although another sync holds the account's lock, if that is dead."
)
def sync(period: str | None, dry_run: bool, take_over: bool) -> None:
    """Send closed invoice lines to Stripe as items of draft invoices or to meters, each once, if the guards are green.

    Lines of a metric that finance has not confirmed are held back.
    """
    if dry_run:
        decisions, plan = plan_without_sending(read_settings(), billing_period=period)
        if decisions:
            click.echo(describe_events(decisions))
        click.echo(describe_plan(plan))
        return
    guards, meters, report = guarded_sync(
        read_settings(), billing_period=period, progress=click.echo, take_over=take_over
    )
    for outcome in guards.outcomes:
        click.echo(outcome.describe())
    click.echo(
        f"lines: {report.created} created, {report.confirmed_by_lookup} found in Stripe, "
        f"{report.already_confirmed} there already, {report.held} held, {report.blocked} blocked, "
        f"{report.failed} failed, "
        f"{report.changed_after_sync} changed after they were sent; {report.finalized} invoices finalised"
    )
    if meters.has_lines:
        click.echo(meters.describe())
    for earlier in report.left_unsent:
        click.echo(f"{earlier} has lines that were not sent with it: metering sync --period {earlier}")
    problems = [*meters.problems, *report.problems]
    if problems:
        raise MeteringError("\n".join(["The sync needs attention:", *problems]))


@cli.command()
def reconcile() -> None:
    """Read Stripe back and compare events, ledger and Stripe by invoice and by meter. Exits with 1 when one is red.

    Red is a difference above a threshold of guard_thresholds.csv. Missing, doubled and foreign items are named.
    """
    report = reconcile_with_stripe(read_settings(), os.environ)
    click.echo(report.describe())
    if report.red or report.red_meters:
        raise MeteringError(
            f"{len(report.red)} invoices and {len(report.red_meters)} customers' periods on meters differ from Stripe "
            "by more than the thresholds allow."
        )
    if report.problems:
        raise MeteringError("Stripe reports events on meters as invalid.")


def _warn_of_unfinished_build(warehouse: Warehouse) -> None:
    """What is printed may come from several builds when the last one failed: say so, on standard error."""
    try:
        require_successful_build(warehouse)
    except MeteringError as error:
        click.echo(f"warning: {error}", err=True)


@cli.command()
@click.option("--customer", metavar="ID", help="Only this customer.")
@click.option("--period", type=_BillingPeriod(), help="Only this billing period.")
def invoices(customer: str | None, period: str | None) -> None:
    """Print invoices and credit notes, drafts and closed, with their lines; metering explain takes a line's id."""
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
@click.argument("invoice_id")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File to write; by default one in the folder statements beside the database.",
)
def statement(invoice_id: str, output: Path | None) -> None:
    """Write the statement of the invoice INVOICE_ID as an HTML file that a customer can be sent, and print its path.

    A closed invoice's comes from the ledger and never changes; that of a draft is marked as such.
    """
    settings = read_settings()
    with connect(settings) as warehouse:
        _warn_of_unfinished_build(warehouse)
        click.echo(write_statement(settings, warehouse, invoice_id, output))


@cli.command()
@click.option("--system", metavar="NAME", help="Only this other system.")
@click.option("--period", type=_BillingPeriod(), help="Only this billing period.")
def shadow(system: str | None, period: str | None) -> None:
    """Print what other systems billed beside our amounts, flagged differences first, each with what explains it.

    What they billed is landed with metering load --shadow, and compared by metering build.
    """
    with connect(read_settings()) as warehouse:
        _warn_of_unfinished_build(warehouse)
        comparisons = list_comparisons(warehouse, system=system, billing_period=period)
    for comparison in comparisons:
        click.echo(describe_comparison(comparison))
    flagged = sum(comparison.is_flagged for comparison in comparisons)
    click.echo(f"{len(comparisons):,} amounts compared, {flagged:,} differences flagged")


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


@cli.command()
@click.argument("price_book", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--from", "from_period", type=_BillingPeriod(), help="First billing period to compare.")
@click.option("--to", "to_period", type=_BillingPeriod(), help="Last billing period to compare.")
@click.option("--name", help="Name of the scenario; by default that of the folder.")
@click.option("--keep", is_flag=True, help="Leave the scenario's schemas in the warehouse; metering drop removes them.")
@click.option("--format", "output_format", type=click.Choice(FORMATS), default="table", show_default=True)
def whatif(
    price_book: Path, from_period: str | None, to_period: str | None, name: str | None, keep: bool, output_format: str
) -> None:
    """Rate real history with the price book in the folder PRICE_BOOK beside the one in force, and print the difference.

    PRICE_BOOK holds CSV files of seeds/pricing; one that is not there is taken from the price book in force. The
    present stays as it is. The mart fct_what_if has all rows of the latest run of each name.
    """
    found = what_if(
        read_settings(),
        price_book,
        from_period=from_period,
        to_period=to_period,
        name=name or name_from(price_book.resolve().name),
        keep=keep,
        progress=_progress_on_standard_error,
    )
    click.echo(describe(found, output_format))
    if found.schemas is not None:
        click.echo(f"kept: {found.schemas}marts; remove with: metering drop {found.schemas}", err=True)


@cli.command(name="as-of")
@click.argument("instant", type=_Instant())
@click.option("--mart", "marts", multiple=True, metavar="NAME", help="Build only this mart; may be repeated.")
@click.option("--name", help="Name for the schemas; by default made of the instant.")
def as_of_command(instant: str, marts: tuple[str, ...], name: str | None) -> None:
    """Build marts as known at INSTANT (UTC unless it has an offset), into schemas beside the present.

    Deliveries received until then, the seeds of the last successful build that had begun, the ledger as it was.
    """
    past = rebuild_as_of(
        read_settings(), datetime.fromisoformat(instant), name=name, marts=marts, progress=_progress_on_standard_error
    )
    click.echo(f"as known at {past.instant} UTC, price book {past.price_book_hash}:")
    for schema in past.schemas:
        click.echo(f"  {schema}")
    click.echo(f"remove with: metering drop {past.prefix}")


@cli.command()
@click.option("--run", "run_id", metavar="RUN_ID", help="The billing run, such as 2026-10.1.")
@click.option("--all", "all_runs", is_flag=True, help="Every billing run.")
def reproduce(run_id: str | None, all_runs: bool) -> None:
    """Build billing runs again as known when they were closed, and hold them against the ledger, to the cent.

    Exits with 1 when a line differs.
    """
    if (run_id is None) is not all_runs:
        raise click.UsageError("Give --run RUN_ID or --all.")
    found = reproduce_runs(read_settings(), run_id, progress=_progress_on_standard_error)
    for reproduction in found:
        click.echo(reproduction.describe())
    different = [reproduction.run_id for reproduction in found if reproduction.differences]
    if different:
        raise MeteringError(f"Not what the ledger says: {', '.join(different)}.")
    if not found:
        click.echo("The ledger has no billing run yet.")


@cli.command()
@click.argument("prefix")
def drop(prefix: str) -> None:
    """Drop the schemas that metering whatif --keep or metering as-of left; PREFIX as it was printed."""
    for schema in drop_scenario(read_settings(), prefix):
        click.echo(f"dropped {schema}")


def _progress_on_standard_error(text: str) -> None:
    click.echo(text, err=True)


def main() -> None:
    """Entry point: errors that a user can act on are printed as such, without a traceback."""
    # Left to itself, Python's collector takes a tenth of a build to look through all the objects that dbt keeps.
    gc.set_threshold(100_000, 20, 50)
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
