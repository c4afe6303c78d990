"""Writes seeds into a copy of the project: whole price books, with only the columns that matter given."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

Rows = Iterable[Mapping[str, Any]]


def seed_columns(project: Path, seed: str) -> list[str]:
    """The header of a seed, named like `pricing/charges`."""
    with (project / "seeds" / f"{seed}.csv").open(newline="") as stream:
        return next(csv.reader(stream))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, date):
        return value.isoformat()
    return str(value)


def write_seed(project: Path, seed: str, rows: Rows) -> None:
    """Replace the rows of a seed. Columns that a row lacks are empty; a column that the seed lacks is an error."""
    columns = seed_columns(project, seed)
    with (project / "seeds" / f"{seed}.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})


def write_seeds(project: Path, seeds: Mapping[str, Rows]) -> None:
    for seed, rows in seeds.items():
        write_seed(project, seed, rows)
