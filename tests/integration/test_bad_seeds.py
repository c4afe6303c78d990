"""A bad seed fails the build, and what is printed names the file, the row and the rule."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from orchestration.lib.project import PROJECT_DIR


class BadSeed(NamedTuple):
    """A change of one seed: the first row in which `match` holds gets `values`, or a row is added or dropped.

    Changes of the same `build` are made together, to rows of their own.
    """

    seed: str
    match: dict[str, str]
    values: dict[str, str] | None
    rule: str
    named: str
    is_new_row: bool = False
    build: str = "all"


CASES = {
    "duplicate key": BadSeed(
        "pricing/plans.csv",
        {"plan_code": "standard-eur"},
        {"plan_code": "standard-usd"},
        "unique",
        "csv_line=3, plan_code=standard-usd",
    ),
    "unknown currency": BadSeed(
        "pricing/plans.csv",
        {"plan_code": "standard-kwd"},
        {"currency_code": "EUX"},
        "currency_code stands in currencies.csv",
        "csv_line=5, plan_code=standard-kwd",
    ),
    "unknown metric": BadSeed(
        "pricing/charges.csv",
        {"charge_code": "usd-users"},
        {"metric_code": "users"},
        "metric_code stands in billable_metrics.csv",
        "csv_line=7, charge_code=usd-users",
    ),
    "two prices at once": BadSeed(
        "pricing/charges.csv",
        {"charge_code": "usd-generated", "price_version": "1"},
        {"valid_to": "2026-10-16 00:00:00"},
        "price versions of a charge do not overlap",
        "charge_code=usd-generated",
    ),
    "unknown charge model": BadSeed(
        "pricing/charges.csv",
        {"charge_code": "eur-users"},
        {"charge_model": "magic"},
        "charge_model is per_unit, graduated, volume or package",
        "charge_model=magic",
    ),
    "package without size": BadSeed(
        "pricing/charges.csv",
        {"charge_code": "usd-requests"},
        {"package_size": ""},
        "a package charge has a package_size above 0",
        "charge_code=usd-requests",
    ),
    "gap in tier numbers": BadSeed(
        "pricing/charge_tiers.csv",
        {"charge_code": "usd-context", "tier_number": "2"},
        {"tier_number": "4"},
        "tiers are numbered from 1 without gaps",
        "charge_code=usd-context",
    ),
    "overlapping tiers": BadSeed(
        "pricing/charge_tiers.csv",
        {"charge_code": "eur-context", "tier_number": "2"},
        {"up_to": "400000"},
        "tiers are numbered from 1 without gaps, up_to rises",
        "up_to=400000.000000000",
    ),
    "bounded last tier": BadSeed(
        "pricing/charge_tiers.csv",
        {"charge_code": "jpy-users"},
        {"up_to": "10"},
        "only the last tier has none",
        "charge_code=jpy-users",
    ),
    "negative price": BadSeed(
        "pricing/charge_tiers.csv",
        {"charge_code": "kwd-users"},
        {"unit_amount": "-3"},
        "unit_amount is not negative",
        "unit_amount=-3.000000000000",
    ),
    "price without tiers": BadSeed(
        "pricing/charge_tiers.csv",
        {"charge_code": "jpy-sessions"},
        {"charge_code": "jpy-time"},
        "every price version has tiers in charge_tiers.csv",
        "charge_code=jpy-sessions",
    ),
    "not a number": BadSeed(
        "pricing/charge_tiers.csv",
        {"charge_code": "usd-users"},
        {"unit_amount": "three"},
        "charge_tiers.csv",
        "CSV Error on Line: 13",
        build="types",
    ),
    "entitlement of no charge": BadSeed(
        "pricing/entitlements.csv",
        {"charge_code": "usd-users"},
        {"charge_code": "usd-people"},
        "charge_code stands in charges.csv",
        "charge_code=usd-people, included_quantity",
    ),
    "sum over text": BadSeed(
        "catalog/billable_metrics.csv",
        {"metric_code": "context_tokens"},
        {"property_name": "service"},
        "for sum and max a number with a minimum of at least 0",
        "seed_file=seeds/catalog/billable_metrics.csv, metric_code=context_tokens",
    ),
    "filter on an undeclared property": BadSeed(
        "catalog/metric_filters.csv",
        {"metric_code": "code_requests"},
        {"property_name": "colour"},
        "name properties that event_properties.csv declares",
        "seed_file=seeds/catalog/metric_filters.csv, metric_code=code_requests, property_name=colour",
    ),
    "unknown time zone": BadSeed(
        "accounts/subscriptions.csv",
        {"subscription_id": "sub_000"},
        {"time_zone": "Mars/Olympus"},
        "time_zone is a name of the IANA time zone database",
        "seed_file=seeds/accounts/subscriptions.csv, subscription_id=sub_000, time_zone=Mars/Olympus",
        build="time zones",
    ),
    "usage billed twice": BadSeed(
        "accounts/subscriptions.csv",
        {"subscription_id": "sub_000"},
        {"subscription_id": "sub_000_again"},
        "its usage would be billed twice",
        "other_subscription_id=sub_000_again",
        is_new_row=True,
    ),
    "subscription of nobody": BadSeed(
        "accounts/subscriptions.csv",
        {"subscription_id": "sub_001"},
        {"customer_id": "cus_999"},
        "customer_id stands in customers.csv",
        "csv_line=3, subscription_id=sub_001",
    ),
    "exception without reason": BadSeed(
        "policy/guard_exceptions.csv",
        {},
        {"guard_code": "accuracy", "subject": "requests", "reason": "", "approved_on": "2026-11-01"},
        "not_null_guard_exceptions_reason",
        "subject=requests",
        is_new_row=True,
    ),
    "missing policy": BadSeed(
        "policy/event_policy.csv",
        {"policy_code": "grace_period"},
        None,
        "event_policy.csv has a row grace_period",
        "grace_period_hours=None",
    ),
}


def apply(case: BadSeed, project: Path) -> None:
    path = project / "seeds" / case.seed
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
        fields = list(reader.fieldnames or [])
    row = next((row for row in rows if all(row[name] == value for name, value in case.match.items())), {})
    assert row or not case.match
    if case.values is None:
        rows.remove(row)
    elif case.is_new_row:
        rows.append(row | case.values)
    else:
        row.update(case.values)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """The outcome of a dbt build over the bad seeds of a group."""

    @cache
    def build(group: str) -> subprocess.CompletedProcess[str]:
        project = tmp_path_factory.mktemp("project")
        for folder in ("models", "macros", "seeds", "profiles", "tests/generic", "tests/singular"):
            shutil.copytree(PROJECT_DIR / folder, project / folder)
        shutil.copy(PROJECT_DIR / "dbt_project.yml", project)
        (project / "data").mkdir()
        for case in CASES.values():
            if case.build == group:
                apply(case, project)
        return subprocess.run(
            [
                str(Path(sys.executable).with_name("dbt")),
                "--quiet",
                "build",
                "--exclude-resource-type",
                "unit_test",
                "--profiles-dir",
                "profiles",
                "--target",
                "ci",
            ],
            cwd=project,
            env={"PATH": "/usr/bin:/bin", "HOME": str(project), "DO_NOT_TRACK": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return build


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_seed_fails_the_build_with_file_row_and_rule(
    built: Callable[[str], subprocess.CompletedProcess[str]], case: BadSeed
) -> None:
    outcome = built(case.build)
    assert outcome.returncode == 1
    assert case.rule in outcome.stdout
    assert case.named in outcome.stdout
    assert Path(case.seed).name in outcome.stdout


def test_good_seeds_build(built: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    outcome = built("no case")
    assert (outcome.returncode, outcome.stdout) == (0, "")
