"""Events that arrive after the grace of their service period: held, decided on, rejected or counted as policy and decisions say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.integration.conftest import Warehouse
from tests.integration.test_invariants import change_seed, tokens

MakeEvent = Callable[..., dict[str, Any]]
IN_TIME = datetime(2026, 9, 20)
LATE = datetime(2026, 10, 5)


def build_usage(warehouse: Warehouse, *, full_refresh: bool = False) -> None:
    """Seeds and models up to the usage of service periods, without what is rated."""
    warehouse.build_models(
        "+fct_usage_by_service_period", "+fct_late_events", "+fct_event_corrections", full_refresh=full_refresh
    )


def statuses(warehouse: Warehouse) -> dict[str, str]:
    return dict(warehouse.query("select idempotency_key, status from marts.fct_late_events"))


def test_decisions_and_policies_take_effect_with_the_next_build(
    warehouse_of_copy: Warehouse, project_copy: Path, make_event: MakeEvent
) -> None:
    """Nothing new arrives between the builds: only seeds change, and the hours of what they decide are metered again."""
    warehouse = warehouse_of_copy

    def set_policy(policy: str) -> None:
        change_seed(
            project_copy,
            "policy/event_policy.csv",
            lambda rows: [
                row | {"policy_value": policy} if row["policy_code"] == "late_events" else row for row in rows
            ],
        )

    def decide(decision: str, **subject: str) -> None:
        row = {"idempotency_key": "", "batch_id": "", "decision": decision, "decided_by": "finance"}
        row |= {"decided_on": "2026-10-06", "reason": "agreed with the customer"}
        change_seed(project_copy, "policy/late_event_reviews.csv", lambda rows: [*rows, row | subject])

    set_policy("review")
    warehouse.insert_deliveries([
        ("in time", 1, IN_TIME, make_event("in time", p_context_tokens=1)),
        ("in time", 2, IN_TIME, make_event("corrected late", p_context_tokens=2)),
        ("late", 1, LATE, make_event("late", p_context_tokens=4)),
        ("late", 2, LATE, make_event("of october", p_context_tokens=8, occurred_at="2026-10-04T00:00:00Z")),
        ("late", 3, LATE, make_event(
            "late void", corrects="corrected late", correction="void", occurred_at="2026-10-04T00:00:00Z",
        )),
        ("later", 1, LATE, make_event("late too", p_context_tokens=16)),
        ("later", 2, LATE, make_event("late of nobody's plan", p_context_tokens=32, occurred_at="2022-01-01T00:00:00Z")),
    ])  # fmt: skip
    build_usage(warehouse)
    assert statuses(warehouse) == {"late": "waiting", "late void": "waiting", "late too": "waiting"}
    assert warehouse.query("select idempotency_key, status from marts.fct_event_corrections") == [
        ("late void", "late_waiting")
    ]
    assert tokens(warehouse) == 1 + 2 + 8

    decide("accept", idempotency_key="late")
    decide("accept", idempotency_key="late void")
    decide("reject", batch_id="later")
    build_usage(warehouse)
    assert statuses(warehouse) == {"late": "accepted", "late void": "accepted", "late too": "rejected"}
    assert tokens(warehouse) == 1 + 4 + 8
    decided = warehouse.marts()
    build_usage(warehouse, full_refresh=True)
    assert warehouse.marts() == decided

    # Policies matter where nothing was decided.
    change_seed(
        project_copy, "policy/late_event_reviews.csv", lambda rows: [row for row in rows if row["batch_id"] == ""]
    )
    set_policy("adjust")
    build_usage(warehouse)
    assert statuses(warehouse) == {"late": "accepted", "late void": "accepted"}
    assert tokens(warehouse) == 1 + 4 + 8 + 16
    change_seed(project_copy, "catalog/event_types.csv", lambda rows: [row | {"late_events": "reject"} for row in rows])
    build_usage(warehouse)
    assert statuses(warehouse)["late too"] == "rejected"
    assert tokens(warehouse) == 1 + 4 + 8
