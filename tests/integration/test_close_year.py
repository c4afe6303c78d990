"""A year of closes with late events in each month, held against the oracle to the minor unit after each of them.

METERING_CLOSE_MONTHS=12 makes a whole year of it; METERING_CLOSE_SEED=n draws other events.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from datetime import timedelta
from pathlib import Path

from tests.integration.closing_book import (
    CUSTOMERS,
    Ledger,
    Usage,
    as_of_close,
    close_and_die,
    month_start,
    period_of,
    price_book,
    require_conserved,
    require_oracle,
    require_reproduced,
)
from tests.integration.conftest import Warehouse
from tests.integration.price_books import write_seeds
from tests.integration.test_close import CLOSING, build, close

MONTHS = int(os.environ.get("METERING_CLOSE_MONTHS", "2"))
SEED = int(os.environ.get("METERING_CLOSE_SEED", "1"))


def test_a_year_of_closes_equals_the_oracle(
    warehouse_of_copy: Warehouse, project_copy: Path, green_guards: None
) -> None:
    warehouse = warehouse_of_copy
    seeds = price_book()
    write_seeds(project_copy, seeds)
    usage, ledger, seen = Usage(random.Random(SEED)), Ledger(), Counter[str]()
    closed: list[str] = []
    for month in range(1, MONTHS + 1):
        as_of = as_of_close(month)
        start, end = month_start(month), month_start(month + 1)
        in_time = [usage.draw(customer, start, end) for customer in CUSTOMERS for _ in range(12)]
        # Of any month before, mostly of the last.
        late = [
            usage.draw(customer, first, month_start(earlier + 1))
            for customer in CUSTOMERS
            for _ in range(4 if month > 1 else 0)
            for earlier in [max(1, month - usage.random.choice([1, 1, 1, 2, 3, 6]))]
            for first in [max(month_start(earlier), CUSTOMERS[customer][2])]
        ]
        copies, corrections = usage.events[-2:], usage.correct(3 if month > 1 else 0)
        usage.deliver(warehouse, end - timedelta(hours=1), late + in_time, copies + corrections)
        build(warehouse, as_of, *CLOSING)
        ledger.require_kept(warehouse)
        require_conserved(warehouse)
        require_oracle(warehouse, seeds, usage.events, as_of, closed)
        seen["pending"] += warehouse.query("select count(*) from marts.fct_pending_adjustments")[0][0]
        assert warehouse.query("select count(*) from marts.fct_pending_adjustments where cause = 're_rating'") == [(0,)]
        if month % 3 == 2:
            seen["killed"] += close_and_die(warehouse, period_of(month), usage.random.randint(5, 25))
            ledger.require_kept(warehouse)
        close(warehouse, period_of(month))
        closed.append(period_of(month))
        assert warehouse.query("select count(*) from marts.fct_pending_adjustments") == [(0,)]
        ledger.require_kept(warehouse)
        require_conserved(warehouse)
        seen["cents"] += require_oracle(warehouse, seeds, usage.events, as_of, closed)
        assert close(warehouse, period_of(month)).run_id is None
        seen["late"] += len(late)
        seen.update(correction["correction"] for correction in corrections)
    # In a short year the first run, which later ones have adjusted, stands for all.
    seen["reproduced"] = require_reproduced(warehouse, None if MONTHS > 2 else f"{period_of(1)}.1")
    ledger.require_kept(warehouse)
    adjustments = warehouse.query(
        "select count(*), sum(abs(amount_minor)) from ledger.billing_ledger where entry_kind = 'adjustment'"
    )
    print(
        f"seed {SEED}: {MONTHS} closes, {seen['killed']} killed and run again, {len(usage.events)} events, "
        f"{seen['late']} of them late, {seen['void']} voids, {seen['replace']} replacements, {adjustments[0][0]} adjustments "
        f"of {adjustments[0][1]} minor units, {seen['cents']} minor units compared, {seen['reproduced']} runs reproduced"
    )
    assert seen["killed"] > 0
    assert min(seen["void"], seen["replace"]) > 0
    assert adjustments[0][0] == seen["pending"] > 10
    line_types = {row[0] for row in warehouse.query("select distinct line_type from ledger.billing_ledger")}
    assert line_types == {"usage", "flat", "minimum", "commitment", "credit"}
