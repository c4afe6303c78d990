"""What dbt compiles for Snowflake is Snowflake's SQL: DuckDB runs the stand-in's statements and would let its own pass."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlglot
from sqlglot import exp

from orchestration.lib.project import read_settings, run_dbt
from tests.snowflake.standin import Standin
from tests.snowflake.standin.shims import exact_quotients

# From Snowflake's "All functions (alphabetical)"; a function that a model begins to use is looked up there and added here.
FUNCTIONS = {
    "abs", "cast", "chr", "coalesce", "contains", "convert_timezone", "count", "date_trunc", "dateadd", "datediff", "floor",
    "get", "greatest", "lag", "lead", "least", "left", "length", "listagg", "lower", "max", "max_by", "md5", "min", "mod",
    "nullif", "position", "power", "regexp_like", "regexp_substr", "replace", "right", "round",
    "row_number", "rpad", "rtrim", "split_part", "substr", "sum", "to_char", "to_json", "to_number", "to_variant", "trim",
    "try_cast", "try_parse_json", "try_to_timestamp_ntz", "typeof", "upper",
}  # fmt: skip
# Words that a parenthesis follows and that are no functions.
WORDS = {
    "and", "as", "decimal", "else", "exists", "from", "group", "in", "not", "on", "or", "over", "then", "when",
    "where",
}  # fmt: skip
TEXT_OR_COMMENT = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)


@pytest.fixture(scope="module")
def target(standin: Standin, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What dbt compiles, and its manifest."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in standin.environment("COMPILED").items():
            patch.setenv(name, value)
        patch.setenv("METERING_TARGET", "standin")
        patch.setenv("METERING_STATE_DIR", str(folder))
        patch.setenv("DBT_TARGET_PATH", str(folder))
        run_dbt(read_settings(), "compile", quiet=True)
    return folder


@pytest.fixture(scope="module")
def compiled(target: Path) -> dict[str, str]:
    """SQL by file, of models and data tests."""
    files = {path.name: path.read_text() for path in (target / "compiled").rglob("*.sql") if not is_unit_test(path)}
    statements = {name: sql for name, sql in files.items() if sql.strip()}
    assert len(statements) > 350
    return statements


@pytest.fixture(scope="module")
def incremental_models(target: Path) -> dict[str, set[str]]:
    """Columns of each incremental model by file."""
    nodes = json.loads((target / "manifest.json").read_text())["nodes"].values()
    return {
        f"{node['name']}.sql": set(node["columns"]) for node in nodes if node["config"]["materialized"] == "incremental"
    }


def is_unit_test(path: Path) -> bool:
    return any("unit_tests" in part for part in path.parts)


def parsed(compiled: dict[str, str]) -> Iterator[tuple[str, exp.Expression]]:
    for name, sql in compiled.items():
        yield name, sqlglot.parse_one(sql, read="snowflake")


def test_functions_are_snowflakes(compiled: dict[str, str]) -> None:
    unknown = set()
    for name, sql in compiled.items():
        code = TEXT_OR_COMMENT.sub("''", sql).lower()
        # A name with its columns: of a recursive CTE, or of a subquery.
        column_lists = set(re.findall(r"\bas\s+([a-z_0-9]+)\s*\(|\b([a-z_0-9]+)\s*\([^()]*\)\s*as\s*\(", code))
        called = set(re.findall(r"\b([a-z_][a-z_0-9]*)\s*\(", code))
        unknown |= {
            (name, function)
            for function in called - FUNCTIONS - WORDS - {one for names in column_lists for one in names}
        }
    assert unknown == set()


def test_operators_are_snowflakes(compiled: dict[str, str]) -> None:
    """No integer division, lambda, list or JSON arrow of DuckDB."""
    foreign = [
        (name, found.group())
        for name, sql in compiled.items()
        for found in re.finditer(r"//|->>?|\[|\blambda\b|\bhugeint\b", TEXT_OR_COMMENT.sub("''", sql))
    ]
    assert foreign == []


def is_whole_or_measured(division: exp.Div) -> bool:
    """Comes out even, is rounded down at once, or is a ratio of doubles that no money is made of."""
    both_doubles = all(
        isinstance(side, exp.Cast) and side.to.this == exp.DType.DOUBLE for side in (division.left, division.right)
    )
    return both_doubles or isinstance(division.parent, exp.Floor) or exact_quotients(division) is not division


def test_divisions_are_exact(compiled: dict[str, str]) -> None:
    """Snowflake rounds a quotient to 6 to 12 decimals; amounts have 21 and quantities 9."""
    inexact = [
        (name, division.sql(dialect="snowflake")[:200])
        for name, statement in parsed(compiled)
        for division in statement.find_all(exp.Div)
        if not is_whole_or_measured(division)
    ]
    assert inexact == []


def test_numbers_of_incremental_models_have_a_type_that_no_value_changes(
    compiled: dict[str, str], incremental_models: dict[str, set[str]]
) -> None:
    """A literal is of as many digits as it has, and so is a sum with one: the next build would find another type."""
    assert "stage_sequence" in incremental_models["stg_event_deliveries.sql"]
    untyped = [
        (name, alias.sql(dialect="snowflake"))
        for name, statement in parsed({name: compiled[name] for name in incremental_models})
        for alias in statement.find_all(exp.Alias)
        if alias.alias.lower() in incremental_models[name] and is_of_a_literals_type(alias.this)
    ]
    assert untyped == []


def is_of_a_literals_type(value: exp.Expression) -> bool:
    """Whether the type of an expression may depend on the digits of a literal in it: numbers, sums, and what chooses them."""
    value = value.unnest()
    if isinstance(value, exp.Subquery | exp.Select):
        return any(is_of_a_literals_type(selected.unalias()) for selected in value.selects)
    if isinstance(value, exp.Coalesce):
        return any(is_of_a_literals_type(argument) for argument in [value.this, *value.expressions])
    if isinstance(value, exp.Case):
        results = [*(branch.args["true"] for branch in value.args["ifs"]), value.args.get("default")]
        return any(is_of_a_literals_type(result) for result in results if result is not None)
    return isinstance(value, exp.Add | exp.Sub | exp.Mul | exp.Div | exp.Neg) or value.is_number


def test_timestamps_have_no_zone_whatever_the_session_says(compiled: dict[str, str]) -> None:
    """TIMESTAMP is what TIMESTAMP_TYPE_MAPPING of the session makes of it; DATETIME is TIMESTAMP_NTZ always."""
    bare = [
        (name, str(found.group()))
        for name, sql in compiled.items()
        for found in re.finditer(r"\bas timestamp\b|::\s*timestamp\b", TEXT_OR_COMMENT.sub("''", sql), re.IGNORECASE)
    ]
    assert bare == []
