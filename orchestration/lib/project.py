"""Where the project lives, and dbt run in process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbt.adapters.snowflake.connections import SnowflakeCredentials

PROJECT_DIR = Path(__file__).resolve().parents[2]
DEFAULT_DATABASE = PROJECT_DIR / "data" / "metering.duckdb"
DUCKDB_TARGETS = ("dev", "ci")

Progress = Callable[[str], None]


class MeteringError(Exception):
    """A failure that the user can act on; its text says what was wrong, where, and what to do."""


class BuildError(MeteringError):
    """dbt failed. dbt has printed which node and why."""


@dataclass(frozen=True)
class Settings:
    """What a command works on, taken from the environment.

    Attributes:
        database: DuckDB file (METERING_DUCKDB_PATH; data/metering.duckdb in the project by default). On Snowflake there
            is none, and this only says where the files beside it are: METERING_STATE_DIR, by default
            data/<account>-<database> in the project.
        target: dbt target (METERING_TARGET; dev by default).
        project: the dbt project; this one.
        snowflake: account, database and authentication of a Snowflake target, as the dbt profile has them; None for
            DuckDB. Holds secrets.
        stripe_state: state file of the local Stripe server, beside the database.
        ledger_exports: folder of the Parquet files of billing runs, beside the database.
        data_docs: folder of the Great Expectations Data Docs, beside the database.
        memory_limit: memory that DuckDB may take (METERING_DUCKDB_MEMORY_LIMIT; 8GB by default, as in the dbt profile).
        landing: folder whose files the landing assets load: events/ and totals/ (METERING_LANDING_DIR; landing beside
            the database by default).
    """

    database: Path
    target: str
    project: Path = PROJECT_DIR
    snowflake: SnowflakeCredentials | None = field(default=None, repr=False)

    @property
    def stripe_state(self) -> Path:
        return self.database.with_suffix(".stripe.sqlite")

    @property
    def data_docs(self) -> Path:
        return self.database.with_suffix(".data_docs")

    @property
    def ledger_exports(self) -> Path:
        return self.database.with_suffix(".ledger")

    @property
    def memory_limit(self) -> str:
        return os.environ.get("METERING_DUCKDB_MEMORY_LIMIT", "8GB")

    @property
    def landing(self) -> Path:
        return Path(os.environ.get("METERING_LANDING_DIR", str(self.database.parent / "landing")))


def read_settings() -> Settings:
    """Read the settings from the environment. Targets other than dev and ci are Snowflake's, as the dbt profile says.

    Raises:
        MeteringError: the profile has no such target, or not as one of Snowflake.
    """
    target = os.environ.get("METERING_TARGET", "dev")
    if target in DUCKDB_TARGETS:
        database = Path(os.environ.get("METERING_DUCKDB_PATH", str(DEFAULT_DATABASE)))
        return Settings(database=database if database.is_absolute() else Path.cwd() / database, target=target)
    credentials = _snowflake_credentials(target)
    name = re.sub(r"[^a-z0-9_.-]+", "_", f"{credentials.account}-{credentials.database}".lower())
    folder = Path(os.environ.get("METERING_STATE_DIR", str(PROJECT_DIR / "data" / name)))
    return Settings(database=folder.absolute() / "metering", target=target, snowflake=credentials)


def _snowflake_credentials(target: str) -> SnowflakeCredentials:
    """The credentials of a target, rendered by dbt from its profile, so that they are said once.

    Raises:
        MeteringError: the profile has no such target, not as one of Snowflake, or without an account.
    """
    from dbt.adapters.snowflake.connections import SnowflakeCredentials
    from dbt.config.profile import Profile, read_profile
    from dbt.config.renderer import ProfileRenderer
    from dbt_common.context import set_invocation_context
    from dbt_common.dataclass_schema import ValidationError
    from dbt_common.exceptions import DbtRuntimeError

    set_invocation_context(dict(os.environ))
    profiles = read_profile(str(PROJECT_DIR / "profiles"))
    try:
        _, output = Profile.render_profile(profiles["metering"], "metering", target, ProfileRenderer({}))
    except DbtRuntimeError as error:
        raise MeteringError(f"METERING_TARGET={target}: {error.msg}") from error
    if output["type"] != "snowflake":
        raise MeteringError(
            f"METERING_TARGET={target}: is {output['type']} in profiles/profiles.yml. The commands work on the DuckDB "
            f"targets {' and '.join(DUCKDB_TARGETS)} and on targets of Snowflake."
        )
    if not output.get("account"):
        raise MeteringError(
            f"METERING_TARGET={target}: no Snowflake account. Set SNOWFLAKE_ACCOUNT and the other variables that "
            "profiles/profiles.yml names, or unset METERING_TARGET for DuckDB."
        )
    fields = {name: value for name, value in output.items() if name not in ("type", "threads")}
    try:
        fields = SnowflakeCredentials.translate_aliases(fields)
        SnowflakeCredentials.validate(fields)
    except (DbtRuntimeError, ValidationError) as error:
        # The error may repeat a value, and so a secret: only the rule is told.
        path = ".".join(str(part) for part in getattr(error, "path", ()))
        raise MeteringError(
            f"METERING_TARGET={target}: {path or 'the target'} in profiles/profiles.yml is invalid."
        ) from None
    return SnowflakeCredentials.from_dict(fields)


@contextlib.contextmanager
def dbt_environment(settings: Settings) -> Iterator[None]:
    """Point dbt at this project and database; relative paths in profiles are relative to the project."""
    from orchestration.lib.price_book import price_book_hash

    wanted = {
        "METERING_DUCKDB_PATH": str(settings.database),
        "METERING_TARGET": settings.target,
        "METERING_PRICE_BOOK_HASH": price_book_hash(settings.project),
        "METERING_CODE_REVISION": code_revision(settings.project),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DO_NOT_TRACK": "1",
    }
    before = {name: os.environ.get(name) for name in wanted}
    folder = Path.cwd()
    os.environ.update(wanted)
    os.chdir(settings.project)
    try:
        yield
    finally:
        os.chdir(folder)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def run_dbt(settings: Settings, *arguments: str, quiet: bool = False) -> None:
    """Run a dbt command in this process.

    Args:
        settings: database and target to run against.
        arguments: dbt's own arguments, for example ``"build", "--full-refresh"``.
        quiet: print errors only.

    Raises:
        BuildError: dbt reported a failure; its output says where.
    """
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager
    from dbt.cli.main import dbtRunner

    settings.database.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *arguments,
        "--profiles-dir", str(settings.project / "profiles"),
        "--project-dir", str(settings.project),
    ]  # fmt: skip
    with dbt_environment(settings):
        try:
            outcome = dbtRunner().invoke((["--quiet"] if quiet else []) + command)
        finally:
            # dbt-duckdb keeps the database open until the process ends, which would lock out other processes.
            DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]
    if outcome.exception is not None:
        raise BuildError(f"dbt {arguments[0]} stopped: {outcome.exception}") from outcome.exception
    if not outcome.success:
        raise BuildError(f"dbt {arguments[0]} failed; the lines above name the file, the row and the rule.")


def code_revision(project: Path) -> str:
    """The revision of the project's code: the commit in git, with ``+`` when files differ from it, else a hash.

    Seeds do not count: they have a hash of their own.
    """
    folders = ("models", "macros", "orchestration")
    sources = [f"{folder}/" for folder in folders] + ["dbt_project.yml"]
    try:
        commit = _git(project, "rev-parse", "HEAD")
        changed = _git(project, "status", "--porcelain", "--", *sources)
        if _git(project, "ls-files", "--", "dbt_project.yml"):
            return commit + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        pass  # Without git, or outside of a repository, the files themselves say it.
    digest = hashlib.sha256((project / "dbt_project.yml").read_bytes())
    for folder in folders:
        for path in sorted((project / folder).rglob("*")):
            if path.suffix in (".sql", ".yml", ".py"):
                digest.update(path.relative_to(project).as_posix().encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _git(folder: Path, *arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def ensure_manifest(settings: Settings) -> Path:
    """The project's manifest.json for the target, parsed anew when a file of the project is newer.

    Raises:
        BuildError: the project does not parse.
    """
    folder = settings.project / "target"
    if settings.snowflake is not None:
        folder = folder / settings.target
    manifest = folder / "manifest.json"
    folders = ("models", "macros", "seeds", "tests/generic", "tests/singular", "profiles")
    sources = [settings.project / "dbt_project.yml"]
    sources += [path for folder in folders for path in (settings.project / folder).rglob("*") if path.is_file()]
    newest = max(path.stat().st_mtime for path in sources)
    if not manifest.exists() or manifest.stat().st_mtime < newest:
        # With the arguments of the builds in orchestration/defs, or these would parse once more (on Snowflake they do).
        run_dbt(settings, "parse", "--target", settings.target, "--target-path", str(folder), quiet=True)
    return manifest


def build(settings: Settings, *, as_of: str | None = None, full_refresh: bool = False, quiet: bool = False) -> float:
    """Build seeds, models and tests, and keep the text of the seeds as a price book.

    Args:
        settings: database and target to build.
        as_of: instant in UTC (ISO 8601); only deliveries received until then are seen. None: now.
        full_refresh: rebuild from raw instead of adding what is new.
        quiet: print errors only.

    Returns:
        Seconds it took.

    Raises:
        BuildError: a seed, model or test failed.
        MeteringError: a seed has a cell that is not plain; nothing was built.
    """
    from orchestration.lib.price_book import record_price_book
    from orchestration.lib.seed_cells import require_plain_cells
    from orchestration.lib.warehouse import connect

    require_plain_cells(settings.project)
    with connect(settings) as warehouse:
        record_price_book(warehouse, settings.project)
    # Unit tests prove the models, not the data: they run in make test.
    arguments = ["build", "--exclude-resource-type", "unit_test"]
    if full_refresh:
        arguments.append("--full-refresh")
    if as_of is not None:
        arguments += ["--vars", f"{{as_of: '{as_of}'}}"]
    started = time.monotonic()
    run_dbt(settings, *arguments, quiet=quiet)
    return time.monotonic() - started
