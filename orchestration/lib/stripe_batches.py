"""Which lines of an invoice go to Stripe in one call, and how a refused call is taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterable

import stripe

from orchestration.lib.stripe_errors import error_code
from orchestration.lib.stripe_tables import NOTHING_LOGGED, Log, OutboxLine

# Stripe names no limit for "Bulk add invoice line items" but that of the invoice. This is a page of a list: what a call
# has added is read back by one more.
LINES_PER_CALL = 100

# How Stripe names the line at fault among several.
NAMED_LINE = re.compile(r"lines\[(\d+)\]")


def make_batches(lines: Iterable[OutboxLine], log: Log) -> list[tuple[OutboxLine, ...]]:
    """The lines of one invoice, in calls of at most 100 lines.

    Lines that were last tried in one call stay together: should Stripe still be at it, or have done it without
    showing it yet, the same call under the same key does nothing twice.
    """
    tried_together: dict[str | None, list[OutboxLine]] = {}
    for line in lines:
        state = log.get(("invoice_item", line.line_id), NOTHING_LOGGED)
        tried_together.setdefault(state.tried_key, []).append(line)
    return [
        tuple(members[start : start + LINES_PER_CALL])
        for members in tried_together.values()
        for start in range(0, len(members), LINES_PER_CALL)
    ]


def split_refused(
    batch: tuple[OutboxLine, ...], error: stripe.StripeError
) -> tuple[tuple[OutboxLine, ...], tuple[OutboxLine, ...]]:
    """A refused call of several lines in two: the line that Stripe names and the others, or else both halves."""
    named = NAMED_LINE.match(str(getattr(error, "param", None) or ""))
    if named is not None and int(named[1]) < len(batch):
        at = int(named[1])
        return batch[:at] + batch[at + 1 :], batch[at : at + 1]
    half = len(batch) // 2
    return batch[:half], batch[half:]


def is_about_a_line(error: stripe.StripeError) -> bool:
    """Whether fewer lines in a call might help: not when the invoice takes none, or the key was used before."""
    return error.http_status not in (403, 404) and error_code(error) not in (
        "invoice_not_editable",
        "idempotency_error",
    )
