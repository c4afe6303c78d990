"""Billing periods: calendar months, as text."""

from __future__ import annotations

import re

from orchestration.lib.project import MeteringError

_BILLING_PERIOD = re.compile(r"[12][0-9]{3}-(0[1-9]|1[0-2])")


def require_billing_period(text: str | None) -> None:
    """Check that a text is a billing period, ``YYYY-MM`` from 1000 to 2999; None, for all of them, passes.

    Raises:
        MeteringError: it is none.
    """
    if text is not None and not _BILLING_PERIOD.fullmatch(text):
        raise MeteringError(f"{text!r} is no billing period: give a calendar month such as 2026-10.")
