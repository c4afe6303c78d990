"""What a sync of invoice items did."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestration.lib.stripe_plan import ChangedLine


@dataclass
class SyncReport:
    """What a run did. All counts are of lines, save `finalized` and `unknown`.

    Attributes:
        stripe_account: the account's name in the log.
        created: lines created in Stripe by this run.
        confirmed_by_lookup: lines of an earlier run that were found in Stripe.
        already_confirmed: lines that the log had as confirmed and that still match.
        held: lines with a hold reason, never sent to this account.
        failed: lines refused by Stripe, or whose customer or invoice was.
        blocked: lines not sent because others of their customer and billing period have changed after they were sent.
        changed_after_sync: lines that differ from what was confirmed in amount or currency, or are gone or
            held.
        finalized: invoices finalised by this run.
        unknown: objects without an outcome when the run stopped, 0 or 1.
        problems: a sentence for each thing that someone must look at.
        changes: the lines behind `changed_after_sync`.
        left_unsent: earlier billing periods that have lines to send, from the first one that was sent on.
    """

    stripe_account: str
    created: int = 0
    confirmed_by_lookup: int = 0
    already_confirmed: int = 0
    held: int = 0
    failed: int = 0
    blocked: int = 0
    changed_after_sync: int = 0
    finalized: int = 0
    unknown: int = 0
    problems: list[str] = field(default_factory=list)
    changes: tuple[ChangedLine, ...] = ()
    left_unsent: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Nothing failed, changed after the sync, or has an unknown outcome. Held lines are not a problem."""
        return not self.problems
