"""Guards: Great Expectations over the measurements of fct_guard_measurements.

The warehouse measures, exactly; Great Expectations judges, against the thresholds of guard_thresholds.csv, and writes
Data Docs. A breach that guard_exceptions.csv accepts, up to a value, does not block.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.lib.project import MeteringError
from orchestration.lib.warehouse import Warehouse, require_marts

if TYPE_CHECKING:
    import pandas as pd

_SHOWN_BREACHES = 10


class GuardBreach(MeteringError):
    """A guard is red, so nothing may be sent to Stripe."""


@dataclass(frozen=True)
class GuardOutcome:
    """What one guard found.

    Attributes:
        guard_code: the guard.
        unit: unit of its values (ratio or events).
        threshold: largest value that is no breach, or None when guard_thresholds.csv lacks the guard.
        is_required: whether having nothing to measure is a breach.
        measurements: subjects measured, exceptions included.
        worst: largest measured value without an exception, or None.
        breaches: the first subjects in breach, with their values and up to which value each was accepted, or None.
        breach_count: how many there are in all.
        exceptions: breaches that guard_exceptions.csv accepts.
        passed: Great Expectations' verdict.
    """

    guard_code: str
    unit: str
    threshold: float | None
    is_required: bool
    measurements: int
    worst: float | None
    breaches: tuple[tuple[str, float, float | None], ...]
    breach_count: int
    exceptions: int
    passed: bool

    def describe(self) -> str:
        """The outcome as text, one line and one more for each breach shown."""
        if self.measurements == 0:
            why = (
                "nothing to measure, which this guard requires"
                if self.is_required
                else "nothing to measure, not checked"
            )
            return f"{'ok  ' if self.passed else 'FAIL'} {self.guard_code}: {why}"
        limit = "no threshold in guard_thresholds.csv" if self.threshold is None else f"threshold {self.threshold:g}"
        worst = "" if self.worst is None else f", worst {self.worst:g}"
        accepted = f", {self.exceptions} accepted breaches" if self.exceptions else ""
        lines = [
            f"{'ok  ' if self.passed else 'FAIL'} {self.guard_code}: {self.measurements:,} measured, "
            f"{self.breach_count:,} in breach ({limit} {self.unit}{worst}{accepted})"
        ]
        lines += [
            f"       {subject}: {value:g}" + ("" if accepted is None else f" (accepted up to {accepted:g})")
            for subject, value, accepted in self.breaches
        ]
        if self.breach_count > len(self.breaches):
            lines.append(f"       and {self.breach_count - len(self.breaches):,} more")
        return "\n".join(lines)


@dataclass(frozen=True)
class GuardReport:
    """Outcomes of all guards, and the index page of the Data Docs."""

    outcomes: tuple[GuardOutcome, ...]
    data_docs: Path

    @property
    def passed(self) -> bool:
        return bool(self.outcomes) and all(outcome.passed for outcome in self.outcomes)

    def require_passed(self) -> None:
        """
        Raises:
            GuardBreach: a guard is red; the message lists what was found.
        """
        if self.passed:
            return
        found = "\n".join(outcome.describe() for outcome in self.outcomes if not outcome.passed)
        raise GuardBreach(
            f"Guards failed, nothing is closed or sent to Stripe:\n{found}\n"
            f"Data Docs: {self.data_docs}\n"
            "Mend the cause, or accept a breach, up to a value and with its reason, in "
            "seeds/policy/guard_exceptions.csv, then build again."
        )


def run_guards(warehouse: Warehouse, data_docs: Path) -> GuardReport:
    """Judge the measurements of the last build and write Data Docs.

    Args:
        warehouse: open warehouse, built.
        data_docs: folder for the Data Docs; what was there before is replaced.

    Raises:
        MeteringError: the warehouse has not been built, or the folder cannot be replaced.
    """
    require_marts(warehouse, "fct_guard_measurements")
    measurements = (
        warehouse.execute(
            """
            select
                guard_code,
                subject,
                cast(measured as double) as measured,
                cast(accepted_up_to as double) as accepted_up_to,
                is_breach,
                exception_reason is not null as is_excepted
            from marts.fct_guard_measurements
            order by guard_code, measured desc, subject
            """
        )
        .frame()
        .astype({"measured": float, "accepted_up_to": float, "is_breach": bool, "is_excepted": bool})
    )
    guards = warehouse.execute(
        """
        select
            coalesce(thresholds.guard_code, measured.guard_code) as guard_code,
            coalesce(thresholds.unit, '') as unit,
            cast(thresholds.threshold as double) as threshold,
            coalesce(thresholds.is_required, true) as is_required
        from seeds.guard_thresholds as thresholds
        full outer join (select distinct guard_code from marts.fct_guard_measurements) as measured
            on thresholds.guard_code = measured.guard_code
        order by 1
        """
    ).fetchall()
    # In a folder of its own until it is whole: commands may run side by side.
    data_docs.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{data_docs.name}-", dir=data_docs.parent) as folder:
        new = Path(folder) / "new"
        verdicts = _judge(guards, measurements, new)
        _replace(data_docs, new)
    return GuardReport(
        tuple(
            _outcome(code, unit, threshold, is_required, measurements, verdicts[code])
            for code, unit, threshold, is_required in guards
        ),
        data_docs / "gx" / "uncommitted" / "data_docs" / "local_site" / "index.html",
    )


def _replace(data_docs: Path, new: Path) -> None:
    """Put the new Data Docs in place of the old, which are left beside the new."""
    try:
        # Absent the first time, or while another command does the same.
        with contextlib.suppress(FileNotFoundError):
            data_docs.rename(new.with_name("old"))
        try:
            new.rename(data_docs)
        except OSError:
            # Another command that judged the same guards was quicker: its pages are as good.
            if not data_docs.is_dir():
                raise
    except OSError as error:
        raise MeteringError(f"{data_docs}: the Data Docs cannot be replaced: {error}. Remove the folder.") from error


def _outcome(
    guard_code: str, unit: str, threshold: float | None, is_required: bool, measurements: pd.DataFrame, verdict: bool
) -> GuardOutcome:
    own = measurements[measurements["guard_code"] == guard_code]
    judged = own[~own["is_excepted"]]
    in_breach = judged[judged["is_breach"]]
    breaches = tuple(
        (str(subject), float(measured), None if math.isnan(accepted) else float(accepted))
        for subject, measured, accepted in in_breach[["subject", "measured", "accepted_up_to"]]
        .head(_SHOWN_BREACHES)
        .itertuples(index=False, name=None)
    )
    return GuardOutcome(
        guard_code=guard_code,
        unit=unit,
        threshold=threshold,
        is_required=is_required,
        measurements=len(own),
        worst=float(judged["measured"].max()) if len(judged) else None,
        breaches=breaches,
        breach_count=len(in_breach),
        exceptions=int((own["is_excepted"] & own["is_breach"]).sum()),
        # The warehouse compared decimals, Great Expectations doubles: where they differ, the stricter holds.
        passed=verdict and len(in_breach) == 0,
    )


def _judge(
    guards: list[tuple[str, str, float | None, bool]], measurements: pd.DataFrame, data_docs: Path
) -> dict[str, bool]:
    """Run one expectation suite for each guard and write Data Docs into a new folder; the verdict of each."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    os.environ["TQDM_DISABLE"] = "1"
    import great_expectations as gx
    from great_expectations.expectations.core.expect_table_row_count_to_be_between import (
        ExpectTableRowCountToBeBetween,
    )

    data_docs.mkdir()
    context = gx.get_context(mode="file", project_root_dir=str(data_docs))
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    asset = context.data_sources.add_pandas("marts").add_dataframe_asset("fct_guard_measurements")
    verdicts: dict[str, bool] = {}
    for guard_code, _, threshold, is_required in guards:
        own = measurements[(measurements["guard_code"] == guard_code) & ~measurements["is_excepted"]]
        suite = context.suites.add(gx.ExpectationSuite(name=guard_code))
        for expectation in _expectations(gx, threshold):
            suite.add_expectation(expectation)
        # Accepted breaches are not in the frame, but they were measured.
        if is_required and (measurements["guard_code"] != guard_code).all():
            suite.add_expectation(ExpectTableRowCountToBeBetween(min_value=1))
        validation = context.validation_definitions.add(
            gx.ValidationDefinition(
                name=guard_code, data=asset.add_batch_definition_whole_dataframe(guard_code), suite=suite
            )
        )
        frame = own[["guard_code", "subject", "measured"]]
        verdicts[guard_code] = bool(validation.run(batch_parameters={"dataframe": frame}).success)
    # Once for all guards: an action of each would copy the static files and write the index each time.
    context.build_data_docs()
    return verdicts


def _expectations(gx: Any, threshold: float | None) -> list[Any]:
    """What must hold of a guard's measurements. Without a threshold the warehouse has marked each a breach already."""
    expectations = [gx.expectations.ExpectColumnValuesToNotBeNull(column="measured")]
    if threshold is not None:
        expectations.append(gx.expectations.ExpectColumnValuesToBeBetween(column="measured", max_value=threshold))
    return expectations
