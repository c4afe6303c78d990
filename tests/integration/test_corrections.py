"""Events that void or replace others: the same counts whatever the order in which they arrive and are built."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from tests.integration.conftest import Warehouse

MakeEvent = Callable[..., dict[str, Any]]
START = datetime(2026, 9, 20)


class Delivery(NamedTuple):
    batch: str
    line: int
    received_at: datetime
    event: dict[str, Any]

    @property
    def arrival(self) -> tuple[Any, ...]:
        return self.received_at, self.batch, self.line


def build_metering(warehouse: Warehouse) -> None:
    """Seeds and models up to the hourly usage, without what is made of it."""
    warehouse.build_models("+int_usage_hourly")


def key_number(key: str) -> int:
    return int(hashlib.md5(key.encode()).hexdigest()[:15], 16)


def counted(warehouse: Warehouse) -> dict[str, str]:
    """Each accepted key with why it is not metered; empty when it is."""
    return dict(
        warehouse.query(
            "select events.idempotency_key, coalesce(left_out.reason_code, '') from staging.stg_usage_events as events "
            "left join intermediate.int_events_not_metered as left_out using (idempotency_key)"
        )
    )


def metered(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    """Requests, their tokens and the keys behind them, as the metering has them."""
    return warehouse.query(
        """
        select
            coalesce(sum(event_count) filter (metric_code = 'requests'), 0)::bigint,
            coalesce(sum(event_keys_hash) filter (metric_code = 'requests'), 0)::varchar,
            coalesce(sum(quantity) filter (metric_code = 'context_tokens'), 0)::bigint
        from intermediate.int_usage_hourly
        """
    )


def expected_from(reasons: dict[str, str], events: dict[str, dict[str, Any]]) -> list[tuple[Any, ...]]:
    keys = [key for key, reason in reasons.items() if not reason]
    return [
        (
            len(keys),
            str(sum(map(key_number, keys))),
            sum(events[key]["properties"]["context_tokens"] for key in keys),
        )
    ]


def reasons_of(deliveries: list[Delivery]) -> dict[str, str]:
    """What counts, told from the rules: the first delivery of a key, and of each event its correction that arrived last."""
    first: dict[str, Delivery] = {}
    for delivery in sorted(deliveries, key=lambda each: each.arrival):
        first.setdefault(delivery.event["idempotency_key"], delivery)
    reasons = dict.fromkeys(first, "")
    decisive: dict[str, Delivery] = {}
    for key, delivery in first.items():
        event = delivery.event
        if "corrects" not in event:
            continue
        root, seen = event["corrects"], {key}
        while root in first and "corrects" in first[root].event and root not in seen:
            seen.add(root)
            root = first[root].event["corrects"]
        if root not in first or root in seen:
            reasons[key] = "waiting_for_event"
        elif event["customer_id"] != first[root].event["customer_id"]:
            reasons[key] = "customer_differs"
        elif event["event_type"] != first[root].event["event_type"]:
            reasons[key] = "event_type_differs"
        else:
            reasons[key] = "superseded"
            decisive[root] = max(decisive.get(root, delivery), delivery, key=lambda each: each.arrival)
    for root, delivery in decisive.items():
        is_void = delivery.event["correction"] == "void"
        reasons[root] = "voided" if is_void else "replaced"
        reasons[delivery.event["idempotency_key"]] = "void" if is_void else ""
    return reasons


def test_each_kind_of_correction_counts_as_it_should(warehouse: Warehouse, make_event: MakeEvent) -> None:
    """Batches that commit in another order than they were received in, a build after each; then a full refresh."""
    batches: dict[str, list[dict[str, Any]]] = {
        "a": [
            make_event("plain", p_context_tokens=1),
            make_event("voided", p_context_tokens=2),
            make_event("replaced", p_context_tokens=4),
            make_event("chained", p_context_tokens=8),
            make_event("void of a void", corrects="early void", correction="void"),
            make_event("of another customer", corrects="plain", correction="void", customer_id="cus_001"),
        ],
        "b": [
            make_event("early void", corrects="voided late", correction="void", properties={}),
            make_event("void", corrects="voided", correction="void", properties={}),
            make_event(
                "replacement", corrects="replaced", correction="replace", p_context_tokens=16,
                occurred_at="2026-10-02T08:00:00Z",
            ),
            make_event("chain 1", corrects="chained", correction="replace", p_context_tokens=32),
            make_event("chain 2", corrects="chain 1", correction="replace", p_context_tokens=64),
            make_event("never", corrects="not there", correction="replace"),
        ],
        "c": [
            make_event("voided late", p_context_tokens=128),
            make_event("chain 3", corrects="chain 1", correction="void"),
            make_event("replacement", corrects="plain", correction="void"),
        ],
    }  # fmt: skip
    batch_received_at = {batch: datetime(2026, 10, 5, number) for number, batch in enumerate(sorted(batches))}
    deliveries = [
        Delivery(batch, line, batch_received_at[batch], event)
        for batch, events in batches.items()
        for line, event in enumerate(events, start=1)
    ]
    landed: list[Delivery] = []
    for batch in "bca":
        of_batch = [delivery for delivery in deliveries if delivery.batch == batch]
        landed += of_batch
        warehouse.insert_deliveries(of_batch)
        warehouse.build_models() if batch == "a" else build_metering(warehouse)
        reasons = counted(warehouse)
        assert reasons == reasons_of(landed), f"after batch {batch}"
        events = {each.event["idempotency_key"]: each.event for each in reversed(landed)}
        assert metered(warehouse) == expected_from(reasons, events), f"after batch {batch}"
    requests, keys_hash, context_tokens = metered(warehouse)[0]
    assert context_tokens == 1 + 16
    assert warehouse.query(
        "select sum(event_count)::bigint, sum(event_keys_hash)::varchar from marts.fct_invoice_lines "
        "where metric_code = 'context_tokens'"
    ) == [(requests, keys_hash)]
    statuses = warehouse.query(
        "select idempotency_key, status, chain_depth from marts.fct_event_corrections order by 1"
    )
    assert statuses == [
        ("chain 1", "superseded", 1),
        ("chain 2", "superseded", 2),
        ("chain 3", "applied", 2),
        ("early void", "applied", 1),
        ("never", "waiting_for_event", None),
        ("of another customer", "customer_differs", 1),
        ("replacement", "applied", 1),
        ("void", "applied", 1),
        ("void of a void", "superseded", 2),
    ]
    assert warehouse.query("select idempotency_key, conflicting_fields from marts.fct_event_conflicts") == [
        ("replacement", "occurred_at corrects correction properties")
    ]
    incremental = warehouse.marts()
    warehouse.build_models(full_refresh=True)
    assert warehouse.marts() == incremental


def test_random_corrections_equal_the_rules(warehouse: Warehouse, make_event: MakeEvent) -> None:
    """Corrections of anything by anything, cycles and copies among them, committed in random batches."""
    generator = random.Random(5)
    keys = [f"key {number}" for number in range(400)]
    deliveries: list[Delivery] = []
    for line in range(600):
        key = generator.choice(keys)
        event = make_event(
            key,
            customer_id=generator.choices(["cus_000", "cus_001"], [9, 1])[0],
            occurred_at=(START - timedelta(minutes=generator.randrange(3_000))).isoformat(),
            p_context_tokens=generator.randrange(1_000),
        )
        if generator.random() < 0.5 and (corrects := generator.choice([*keys[:100], "absent"])) != key:
            event |= {"corrects": corrects, "correction": generator.choice(["void", "replace"])}
        received_at = START + timedelta(minutes=generator.randrange(60))
        deliveries.append(Delivery(f"batch {generator.randrange(3)}", line, received_at, event))
    for batch in ("batch 1", "batch 2", "batch 0"):
        warehouse.insert_deliveries(delivery for delivery in deliveries if delivery.batch == batch)
        build_metering(warehouse)
    expected = reasons_of(deliveries)
    assert set(expected.values()) == {
        "", "void", "voided", "replaced", "superseded", "waiting_for_event", "customer_differs",
    }  # fmt: skip
    reasons = counted(warehouse)
    assert reasons == expected
    first = {
        each.event["idempotency_key"]: each.event
        for each in sorted(deliveries, key=lambda each: each.arrival, reverse=True)
    }
    assert metered(warehouse) == expected_from(reasons, first)
