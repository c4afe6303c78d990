"""The log of builds: what counts as a build of everything, so that a period may be closed on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestration.lib.project import PROJECT_DIR, BuildError, MeteringError, Settings, run_dbt
from orchestration.lib.warehouse import connect, require_successful_build

MODELS = {
    "stg_event_deliveries": "select cast('2026-09-01' as timestamp) as received_at",
    "rated": "select * from {{ ref('prices') }} cross join {{ ref('stg_event_deliveries') }}",
}
TEST = "models: [{name: rated, columns: [{name: price, data_tests: [not_null]}]}]"


@pytest.fixture
def small(tmp_path: Path) -> Settings:
    """A project of a seed, two models and a test, which logs its builds as the whole one does, in a tenth of the time."""
    folder = tmp_path / "small"
    (folder / "models").mkdir(parents=True)
    (folder / "seeds").mkdir()
    for part in ("macros/project", "macros/time", "profiles"):
        shutil.copytree(PROJECT_DIR / part, folder / part)
    project = (PROJECT_DIR / "dbt_project.yml").read_text()
    (folder / "dbt_project.yml").write_text(project.partition("\nmodels:\n")[0])
    (folder / "seeds" / "prices.csv").write_text("price\n1\n")
    for name, sql in MODELS.items():
        (folder / "models" / f"{name}.sql").write_text(sql)
    (folder / "models" / "models.yml").write_text(TEST)
    return Settings(database=tmp_path / "warehouse" / "metering.duckdb", target="ci", project=folder)


def refusal(settings: Settings) -> str | None:
    """Why nothing may be closed on the last build, or None."""
    with connect(settings) as warehouse:
        try:
            require_successful_build(warehouse)
        except MeteringError as error:
            return str(error)
    return None


def test_only_a_build_of_everything_is_whole(small: Settings) -> None:
    run_dbt(small, "build", quiet=True)
    assert refusal(small) is None
    for part in (
        ("build", "--empty"),
        ("build", "--sample", "1 day"),
        ("build", "--select", "prices+"),
        ("build", "--exclude", "rated"),
        ("build", "--exclude-resource-type", "test"),
        ("run",),
        ("seed",),
    ):
        run_dbt(small, *part, quiet=True)
        assert "built or tested only a part" in str(refusal(small)), part
    run_dbt(small, "build", "--select", "fqn:*", "--exclude-resource-type", "unit_test", quiet=True)
    assert refusal(small) is None


def test_a_retry_after_a_change_of_seeds_is_not_whole(small: Settings) -> None:
    """It runs what had failed; what had not was built with the prices of before."""
    rated = small.project / "models" / "rated.sql"
    rated.write_text("select nothing")
    with pytest.raises(BuildError):
        run_dbt(small, "build", quiet=True)
    assert "failed in 2 nodes" in str(refusal(small))
    rated.write_text(MODELS["rated"])
    (small.project / "seeds" / "prices.csv").write_text("price\n2\n")
    run_dbt(small, "retry", quiet=True)
    with connect(small) as warehouse:
        assert warehouse.execute("select price from main.rated").rows == [(1,)]
    assert "built or tested only a part, as dbt retry does" in str(refusal(small))
    run_dbt(small, "build", quiet=True)
    assert refusal(small) is None
