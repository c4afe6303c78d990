"""Whether two builds of the same files agree: outcomes of the deliveries, and invoice lines to the minor unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import duckdb

LineKey = tuple[str, str, int, str, str, str]
Lines = Mapping[LineKey, tuple[Decimal, int]]

_KEY = (
    "subscription_id, charge_code, price_version, dimensions, "
    "service_period_start_at::timestamp::varchar, price_start_at::timestamp::varchar"
)


@dataclass(frozen=True)
class Outcomes:
    """What became of the deliveries; the first equals the sum of the next three, and conflicts are duplicates."""

    deliveries: int
    accepted: int
    duplicates: int
    rejected: int
    conflicts: int

    @property
    def is_conserved(self) -> bool:
        return self.deliveries == self.accepted + self.duplicates + self.rejected and self.conflicts <= self.duplicates


def product_outcomes(database: Path) -> Outcomes:
    """From the product's marts; deliveries are counted in the raw table."""
    return _outcomes(
        database,
        "select (select count(*) from raw.usage_events), sum(accepted), sum(duplicates), sum(rejected), sum(conflicts) "
        "from marts.fct_ingestion_health",
    )


def floor_outcomes(database: Path) -> Outcomes:
    return _outcomes(
        database,
        "select (select count(*) from raw_usage_events), count(*) filter (outcome = 'accepted'), "
        "count(*) filter (outcome = 'duplicate'), count(*) filter (outcome = 'rejected'), "
        "count(*) filter (is_conflict) from deliveries",
    )


def product_lines(database: Path) -> Lines:
    """Lines of usage, before commitments and credits, which are lines of their own."""
    return _lines(database, f"select {_KEY}, amount, event_count from marts.fct_rated_lines where line_type = 'usage'")


def rated_lines(database: Path) -> Lines:
    """Lines as benchmarks.rating leaves them."""
    return _lines(database, f"select {_KEY}, amount, event_count from invoice_lines")


def differing_lines(one: Lines, other: Lines) -> list[LineKey]:
    """Lines that only one side has or whose amount or number of events differs."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def _outcomes(database: Path, sql: str) -> Outcomes:
    with duckdb.connect(str(database), read_only=True) as connection:
        row = connection.execute(sql).fetchone()
    assert row is not None
    return Outcomes(*map(int, row))


def _lines(database: Path, sql: str) -> Lines:
    with duckdb.connect(str(database), read_only=True) as connection:
        rows = connection.execute(sql).fetchall()
    lines = {(row[0], row[1], row[2], row[3], row[4], row[5]): (row[6], row[7]) for row in rows}
    if len(lines) != len(rows):
        raise ValueError(f"{database}: {len(rows) - len(lines)} invoice lines share their key with another one")
    return lines
