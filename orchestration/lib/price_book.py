"""The text of every seed, kept in the warehouse for each build, so that a past state can be built again.

A price book is all seeds of the project together: prices, catalog, accounts and policy decide a line alike.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.lib.project import MeteringError

if TYPE_CHECKING:
    from orchestration.lib.warehouse import Warehouse


def price_book_hash(project: Path) -> str:
    """The hash of a project's seeds: of each one's name and text, wherever in ``seeds`` it lies.

    The macro price_book_hash computes the same from dbt's checksums (SHA-256 of the text without white space around
    it), so that a build by dbt's own command is known by it, too. MD5, the one hash that dbt offers to macros, only
    joins these. Ends of lines count: dbt's checksums know no other way.

    Args:
        project: the dbt project.

    Returns:
        32 hexadecimal digits.

    Raises:
        MeteringError: a seed is not UTF-8.
    """
    return _hash_of(seed_texts(project))


def _hash_of(seeds: Iterable[tuple[Path, str]]) -> str:
    lines = [f"{path.stem} {hashlib.sha256(text.strip().encode()).hexdigest()}" for path, text in seeds]
    return hashlib.md5("\n".join(sorted(lines)).encode(), usedforsecurity=False).hexdigest()


def record_price_book(warehouse: Warehouse, project: Path) -> str:
    """Keep the text of all seeds in ledger.price_books, unless this price book is there already.

    One statement, so all seeds are recorded or none.

    Args:
        warehouse: an open warehouse, outside of a transaction of its own or inside.
        project: the dbt project.

    Returns:
        The price book's hash.
    """
    # Read once, so that the hash is that of the text also when a file changes now.
    texts = list(seed_texts(project))
    digest = _hash_of(texts)
    recorded_at = datetime.now(UTC).replace(tzinfo=None)
    seeds = [(path.relative_to(project / "seeds").as_posix(), text) for path, text in texts]
    rows = " union all ".join("select ? as seed, ? as content" for _ in seeds)
    warehouse.execute(
        f"""
        insert into ledger.price_books (price_book_hash, seed, content, recorded_at)
        select ?, seeds.seed, seeds.content, cast(? as datetime)
        from ({rows}) as seeds
        where not exists (select 1 from ledger.price_books as recorded where recorded.price_book_hash = ?)
        """,
        [digest, recorded_at.isoformat(sep=" "), *(value for seed in seeds for value in seed), digest],
    )
    return digest


def restore_price_book(warehouse: Warehouse, digest: str, folder: Path) -> list[Path]:
    """Write the seeds of a recorded price book, each with the text it had.

    Args:
        warehouse: an open warehouse.
        digest: hash of the price book.
        folder: where to write them, in folders as they were in ``seeds``.

    Returns:
        The files written.

    Raises:
        MeteringError: no such price book has been recorded.
    """
    rows = warehouse.execute(
        "select distinct seed, content from ledger.price_books where price_book_hash = ? order by seed", [digest]
    ).rows
    if not rows:
        raise MeteringError(
            f"Price book {digest} is not in ledger.price_books: it was built by dbt's own command and never recorded. "
            "Check the seeds of that time out of version control and run metering build once with them."
        )
    paths = []
    for seed, content in rows:
        path = folder / seed
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
        paths.append(path)
    return paths


def seed_columns(path: Path) -> list[str]:
    """The names of the columns in a seed's first line.

    Raises:
        MeteringError: it has none, or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            columns = next(csv.reader(stream), None)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error
    if not columns:
        raise MeteringError(f"{path} is empty: its first line must name the columns.")
    return columns


def _not_utf8(path: Path, error: UnicodeDecodeError) -> MeteringError:
    return MeteringError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8, as dbt reads it.")


def seed_texts(project: Path) -> Iterator[tuple[Path, str]]:
    """Path and text of each seed, in the order of their paths.

    Raises:
        MeteringError: one is not UTF-8.
    """
    for path in sorted((project / "seeds").rglob("*.csv")):
        try:
            yield path, path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from error
