"""Cells of seeds that an engine could take for something else than they say, refused before dbt loads them.

On Snowflake dbt takes the word null and blanks for a missing value, and Snowflake guesses at the form of a date; on
DuckDB they are text, and a date has one form. A price book must mean the same on both.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from orchestration.lib.price_book import seed_texts
from orchestration.lib.project import MeteringError

_SHOWN_CELLS = 10
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_FORMS = {
    "date": (_DATE, "YYYY-MM-DD"),
    "datetime": (
        re.compile(rf"{_DATE.pattern}([ T]\d{{2}}:\d{{2}}(:\d{{2}}([.]\d{{1,6}})?)?)?"),
        "YYYY-MM-DD HH:MM:SS, without an offset",
    ),
}


def require_plain_cells(project: Path) -> None:
    """Check every row and cell of a project's seeds.

    Args:
        project: the dbt project, whose YAML declares the types of the columns.

    Raises:
        MeteringError: cells are the word null, nothing but blanks, or dates in another form, or a row has too few or
            too many; the message names the first of them by file, line and column. Or a seed is not UTF-8, or no CSV.
    """
    types = _column_types(project)
    found = []
    for path, text in seed_texts(project):
        try:
            problems = list(_problems(text, types.get(path.stem, {})))
        except csv.Error as error:
            raise MeteringError(f"{path.relative_to(project)} cannot be read as CSV: {error}.") from error
        found += [f"{path.relative_to(project)}, line {line}: {problem}" for line, problem in problems]
    if found:
        more = f"\nand {len(found) - _SHOWN_CELLS:,} more" if len(found) > _SHOWN_CELLS else ""
        raise MeteringError("\n".join(found[:_SHOWN_CELLS]) + more + "\nNothing was built.")


def _column_types(project: Path) -> dict[str, Mapping[str, str]]:
    """Declared types by seed and column."""
    return {
        str(seed["name"]): (seed.get("config") or {}).get("column_types") or {}
        for path in (project / "seeds").rglob("*.yml")
        for seed in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("seeds") or []
    }


def _problems(text: str, types: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Each row and cell that is not plain: its line, and what is wrong with it."""
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    columns = next(reader, [])
    for row in reader:
        if row and len(row) != len(columns):
            yield reader.line_num, f"has {len(row)} cells, and line 1 names {len(columns)} columns."
        for column, cell in zip(columns, row, strict=False):
            pattern, form = _FORMS.get(types.get(column, ""), (None, ""))
            if cell and cell.strip().lower() in ("", "null"):
                yield (
                    reader.line_num,
                    f"{column} = {cell!r} is a missing value on some engines and text on others. Leave the cell empty, "
                    "or write another word.",
                )
            elif cell and pattern is not None and not pattern.fullmatch(cell):
                yield reader.line_num, f"{column} = {cell!r} is not written {form}."
