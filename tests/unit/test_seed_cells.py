"""Cells of seeds that engines take for different things are refused before dbt loads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestration.lib.project import PROJECT_DIR, MeteringError
from orchestration.lib.seed_cells import require_plain_cells

TYPES = """
seeds:
  - name: prices
    config:
      column_types: {code: varchar, valid_from: datetime, decided_on: date, amount: "decimal(28, 12)"}
"""


def project_with(folder: Path, *rows: str) -> Path:
    (folder / "seeds" / "pricing").mkdir(parents=True)
    (folder / "seeds" / "pricing" / "_seeds.yml").write_text(TYPES)
    lines = ["code,valid_from,decided_on,amount", *rows]
    (folder / "seeds" / "pricing" / "prices.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_projects_own_seeds_are_plain() -> None:
    require_plain_cells(PROJECT_DIR)


@pytest.mark.parametrize(
    "row",
    [
        "a,2026-10-01,2026-10-01,1.5",
        "a,2026-10-01 00:00:00,,",
        "a,2026-10-01T12:30,,",
        "a,2026-10-01 23:59:59.999999,,",
        ",,,",
        "nullable,,,",
        '"two\nlines",,,',
        "2026/10/01,,,",
    ],
)
def test_plain_cells_pass(tmp_path: Path, row: str) -> None:
    require_plain_cells(project_with(tmp_path, row))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("null,,,", "code = 'null' is a missing value on some engines"),
        ("a,,,NULL", "amount = 'NULL' is a missing value"),
        ("Null ,,,", "code = 'Null ' is a missing value"),
        ('"  ",,,', "code = '  ' is a missing value"),
        ("a,01/10/2026,,", "valid_from = '01/10/2026' is not written YYYY-MM-DD HH:MM:SS, without an offset."),
        ("a,2026-10-01T00:00:00Z,,", "valid_from = '2026-10-01T00:00:00Z' is not written"),
        ("a,1764288000,,", "valid_from = '1764288000' is not written"),
        ("a,,", "has 3 cells, and line 1 names 4 columns."),
        ("a,,,,", "has 5 cells, and line 1 names 4 columns."),
        ("a,,2026-10-01 00:00:00,", "decided_on = '2026-10-01 00:00:00' is not written YYYY-MM-DD."),
    ],
)
def test_other_cells_are_named_with_file_line_and_column(tmp_path: Path, row: str, problem: str) -> None:
    with pytest.raises(MeteringError) as refusal:
        require_plain_cells(project_with(tmp_path, "a,,,1", row))
    message = str(refusal.value)
    assert f"seeds/pricing/prices.csv, line 3: {problem}" in message
    assert message.endswith("Nothing was built.")


def test_a_byte_order_mark_and_an_empty_description_hide_nothing(tmp_path: Path) -> None:
    project = project_with(tmp_path)
    seeds = project / "seeds" / "pricing"
    (seeds / "_other.yml").write_text("seeds:\n  - name: others\n    config:\n")
    (seeds / "_none.yml").write_text("seeds:\n")
    (seeds / "prices.csv").write_text("\ufeffvalid_from,code\n2026-1-1,a\n")
    with pytest.raises(MeteringError, match="line 2: valid_from = '2026-1-1' is not written"):
        require_plain_cells(project)


def test_a_cell_that_never_ends_is_an_error_of_its_file(tmp_path: Path) -> None:
    with pytest.raises(MeteringError, match=r"seeds/pricing/prices\.csv cannot be read as CSV"):
        require_plain_cells(project_with(tmp_path, '"' + "a" * 200_000))


def test_a_file_with_many_such_cells_names_the_first(tmp_path: Path) -> None:
    with pytest.raises(MeteringError) as refusal:
        require_plain_cells(project_with(tmp_path, *["null,,,"] * 13))
    lines = str(refusal.value).splitlines()
    assert lines[9].startswith("seeds/pricing/prices.csv, line 11: ")
    assert lines[10:] == ["and 3 more", "Nothing was built."]
