"""Builds beside the present: other seeds or a past instant, over the same raw tables, in schemas of their own.

The present is never written. The schemas of a scenario are named ``<kind>_<name>__<schema>``; a scenario drops those of
an earlier one of its name first, so what a killed process left behind harms nobody.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from orchestration.lib.project import MeteringError, Progress, Settings, run_dbt
from orchestration.lib.warehouse import Warehouse, connect

KINDS = ("whatif", "asof", "reproduce")

# Two underscores end the name, so that the schemas of one name are never those of another.
_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_MAX_NAME = 60
_FOLDERS = ("models", "macros", "seeds", "tests/generic", "tests/singular", "profiles")


@dataclass(frozen=True)
class Scenario:
    """A build beside the present.

    Attributes:
        settings: those of the present, with a temporary copy of the project, whose seeds may be changed.
        prefix: what stands before the names of its schemas.
    """

    settings: Settings
    prefix: str

    @property
    def seeds(self) -> Path:
        return self.settings.project / "seeds"

    def schema(self, name: str) -> str:
        """Where the scenario has what the present has in a schema."""
        return self.prefix + name

    def build(
        self,
        *arguments: str,
        as_of: datetime,
        variables: Mapping[str, str] | None = None,
        progress: Progress,
    ) -> None:
        """Run dbt build, printing nothing but errors, on standard error.

        Args:
            arguments: more arguments of dbt build.
            as_of: instant, in UTC, until which deliveries are seen.
            variables: more variables of the dbt project.
            progress: told how long it took.

        Raises:
            BuildError: a seed, model or test failed.
        """
        started = time.monotonic()
        # What is printed on standard output may be a comment for a pull request.
        with contextlib.redirect_stdout(sys.stderr):
            self._run_dbt("build", *arguments, as_of=as_of, variables=variables)
        progress(f"built in {time.monotonic() - started:.1f} s")

    def present_manifest(self, *, as_of: datetime) -> Path:
        """dbt's manifest.json of the present, in a folder that ``--state`` takes.

        The scenario's own, without the prefix: parsing takes longer than many a build, and the build that follows, as
        of the same instant, finds this parsed.
        """
        self._run_dbt("parse", as_of=as_of, variables=None)
        own = (self._target / "manifest.json").read_text(encoding="utf-8")
        present = self.settings.project / "present" / "manifest.json"
        present.parent.mkdir()
        present.write_text(own.replace(self.prefix, ""), encoding="utf-8")
        return present

    @property
    def _target(self) -> Path:
        return self.settings.project / "target"

    def _run_dbt(self, command: str, *arguments: str, as_of: datetime, variables: Mapping[str, str] | None) -> None:
        dbt_variables = {"schema_prefix": self.prefix, "as_of": str(as_of), **(variables or {})}
        run_dbt(
            self.settings,
            command,
            *arguments,
            *("--vars", json.dumps(dbt_variables)),
            *("--target-path", str(self._target), "--log-path", str(self.settings.project / "logs")),
            quiet=True,
        )


def scenario_prefix(kind: str, name: str) -> str:
    """What stands before the names of a scenario's schemas.

    Args:
        kind: one of KINDS.
        name: lower-case letters, digits and single underscores.

    Raises:
        MeteringError: the name has something else in it, or is too long.
    """
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise MeteringError(
            f"{name!r} cannot be the name of a scenario, since schemas are named after it: give at most {_MAX_NAME} "
            "lower-case letters, digits and single underscores between them."
        )
    return f"{kind}_{name}__"


def name_from(text: str) -> str:
    """A scenario's name made of any text, such as a folder's name."""
    return "_".join(re.findall(r"[a-z0-9]+", text.lower()))[:_MAX_NAME].strip("_") or "unnamed"


@contextlib.contextmanager
def beside_the_present(settings: Settings, kind: str, name: str, *, keep: bool) -> Iterator[Scenario]:
    """Make ready for a build beside the present: a copy of the project, and no schemas that an earlier one left.

    The copy is deleted when the block ends; the schemas are dropped, unless they are to be kept and all went well.

    Raises:
        MeteringError: the name is none.
    """
    prefix = scenario_prefix(kind, name)
    with tempfile.TemporaryDirectory(prefix="metering-") as folder:
        project = Path(folder) / "project"
        for part in _FOLDERS:
            # Unit tests prove the models, not the data, and take half a second to parse.
            shutil.copytree(settings.project / part, project / part, ignore=shutil.ignore_patterns("*unit_tests.yml"))
        shutil.copy(settings.project / "dbt_project.yml", project)
        with connect(settings) as warehouse:
            drop_schemas(warehouse, prefix)
        try:
            yield Scenario(replace(settings, project=project), prefix)
        except BaseException:
            keep = False
            raise
        finally:
            if not keep:
                with connect(settings) as warehouse:
                    drop_schemas(warehouse, prefix)


def list_prefixes(warehouse: Warehouse) -> list[str]:
    """The prefixes of all scenarios that have schemas in the warehouse."""
    names = warehouse.execute("select distinct lower(schema_name) from information_schema.schemata").rows
    found = {name[: name.index("__") + 2] for (name,) in names if name.startswith(KINDS) and "__" in name}
    return sorted(prefix for prefix in found if prefix.split("_")[0] in KINDS)


def drop_schemas(warehouse: Warehouse, prefix: str) -> list[str]:
    """Drop the schemas of a scenario, if there are any, and say which."""
    names = warehouse.execute("select distinct lower(schema_name) from information_schema.schemata").rows
    own = sorted(name for (name,) in names if name.startswith(prefix))
    for name in own:
        warehouse.execute(f"drop schema if exists {name} cascade")
    return own


def drop_scenario(settings: Settings, prefix: str) -> list[str]:
    """Drop the schemas of a scenario that was kept, and say which.

    Raises:
        MeteringError: there is no such scenario.
    """
    with connect(settings) as warehouse:
        present = list_prefixes(warehouse)
        if prefix not in present:
            raise MeteringError(f"No schemas begin with {prefix!r}; kept are: {', '.join(present) or 'none'}.")
        return drop_schemas(warehouse, prefix)
