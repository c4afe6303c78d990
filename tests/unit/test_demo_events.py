"""The demo data: repeatable to the byte, with counts and totals that a reader of the files arrives at too."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestration.lib.demo_events import CUSTOMER_IDS, MALFORMED_KINDS, DemoData, write_demo_data

EVENTS = 20_000


@dataclass(frozen=True)
class Recount:
    """What this test finds in the files by itself: first valid deliveries by key, and what is left."""

    accepted: dict[str, dict[str, Any]]
    duplicates: int
    conflicts: list[tuple[dict[str, Any], dict[str, Any]]]
    malformed: Counter[str]
    lines_by_file: dict[str, int]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return write_demo_data(tmp_path_factory.mktemp("demo"), events=EVENTS)


@pytest.fixture(scope="module")
def recount(demo: DemoData) -> Recount:
    accepted: dict[str, dict[str, Any]] = {}
    conflicts = []
    duplicates = 0
    malformed: Counter[str] = Counter()
    lines_by_file: Counter[str] = Counter()
    for path in demo.event_files:
        for event in read_deliveries(path):
            lines_by_file[path.name] += 1
            problems = find_problems(event)
            malformed.update(problems)
            if problems:
                continue
            first = accepted.setdefault(event["idempotency_key"], event)
            duplicates += first is not event
            if first != event:
                conflicts.append((first, event))
    return Recount(accepted, duplicates, conflicts, malformed, dict(lines_by_file))


def read_text(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text("utf-8")


def read_deliveries(path: Path) -> Iterator[dict[str, Any]]:
    lines = read_text(path).splitlines()
    if path.suffix == ".csv":
        for row in csv.DictReader(lines):
            yield {
                **row,
                "schema_version": int(row["schema_version"]),
                "properties": json.loads(row["properties"]),
            }
        return
    for line in lines:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            event = {"unparseable": line}
        if "specversion" in event:
            assert set(event) == {"specversion", "id", "source", "type", "subject", "time", "data"}
            assert (event["specversion"], event["source"]) == ("1.0", "urn:sample:gateway")
            event = {
                "idempotency_key": f"{event['source']}/{event['id']}",
                "event_type": event["type"],
                "schema_version": 1,
                "customer_id": event["subject"],
                "occurred_at": event["time"],
                "properties": event["data"],
            }
        yield event


def find_problems(event: dict[str, Any]) -> list[str]:
    """Check one delivery against the event contract; the kinds are named as the generator names them."""
    if "unparseable" in event:
        return ["broken_json"]
    problems = []
    properties = event["properties"]
    if event.get("customer_id") not in CUSTOMER_IDS:
        problems.append("missing_customer_id")
    if event["schema_version"] != 1:
        problems.append("unknown_schema_version")
    try:
        datetime.fromisoformat(event["occurred_at"])
    except ValueError:
        problems.append("occurred_at_unparseable")
    if event["event_type"] == "assistant_session":
        assert set(properties) == {"user_id", "duration_seconds"}
        assert isinstance(properties["duration_seconds"], str)
        assert 0 < Decimal(properties["duration_seconds"]) <= 14_400
        return problems
    if event["event_type"] != "llm_request":
        return [*problems, "unknown_event_type"]
    if properties["service"] not in ("conversation", "code"):
        problems.append("service_not_allowed")
    if "context_tokens" not in properties:
        problems.append("missing_context_tokens")
    elif not 1 <= properties["context_tokens"] <= 128_000:
        problems.append("context_tokens_out_of_range")
    if not isinstance(properties["generated_tokens"], int):
        problems.append("generated_tokens_not_a_number")
    else:
        assert 0 <= properties["generated_tokens"] <= 4096
    assert properties.get("model", "small") in ("small", "large")
    return problems


def aggregate(metric_code: str, items: list[Any]) -> Decimal:
    if metric_code == "longest_context":
        return Decimal(max(items))
    return Decimal(len(set(items)) if metric_code == "active_users" else sum(items))


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_demo_data(tmp_path / name, events=1_000) for name in ("a", "b"))
    for one, other in zip(
        (*first.event_files, first.independent_totals),
        (*second.event_files, second.independent_totals),
        strict=True,
    ):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes()
    assert first.lines_by_file == second.lines_by_file


def test_another_seed_writes_other_events(tmp_path: Path) -> None:
    first = write_demo_data(tmp_path / "a", events=1_000)
    second = write_demo_data(tmp_path / "b", events=1_000, seed=1)
    assert first.october_events.read_bytes() != second.october_events.read_bytes()


def test_gzip_header_carries_no_time_and_no_file_name(demo: DemoData) -> None:
    header = demo.september_events.read_bytes()[:10]
    assert header[:4] == b"\x1f\x8b\x08\x00"
    assert header[4:8] == bytes(4)


def test_every_delivery_is_accepted_duplicate_or_rejected(demo: DemoData, recount: Recount) -> None:
    assert demo.deliveries == sum(recount.lines_by_file.values())
    assert demo.deliveries == len(recount.accepted) + recount.duplicates + recount.malformed.total()
    assert (demo.accepted, demo.duplicates, demo.conflicts, demo.rejected) == (
        len(recount.accepted),
        recount.duplicates,
        len(recount.conflicts),
        recount.malformed.total(),
    )
    assert dict(demo.lines_by_file) == recount.lines_by_file
    assert demo.accepted == EVENTS
    assert demo.duplicates == EVENTS * 2 // 100 + 3


def test_every_malformed_kind_is_present_exactly_once(demo: DemoData, recount: Recount) -> None:
    assert recount.malformed == dict.fromkeys(MALFORMED_KINDS, 1)
    assert demo.rejected == 9
    assert demo.rejected / demo.deliveries < 0.001


def test_conflicts_differ_in_generated_tokens_alone(recount: Recount) -> None:
    assert len(recount.conflicts) == 3
    for first, later in recount.conflicts:
        assert first["properties"]["generated_tokens"] != later["properties"]["generated_tokens"]
        later_as_first = {**later["properties"], "generated_tokens": first["properties"]["generated_tokens"]}
        assert {**later, "properties": later_as_first} == first


def test_copies_arrive_in_the_same_file_and_in_another(demo: DemoData) -> None:
    keys_by_file = [
        Counter(event.get("idempotency_key") for event in read_deliveries(path)) for path in demo.event_files
    ]
    assert all(max(keys.values()) > 1 for keys in keys_by_file)
    september, october = keys_by_file[:2]
    assert set(september) & set(october)


def test_events_cover_both_months_and_every_customer_unevenly(recount: Recount) -> None:
    events = recount.accepted.values()
    times = sorted(event["occurred_at"] for event in events)
    assert times[0] == "2026-09-01T00:00:00.000000Z"
    assert times[-1] == "2026-10-31T23:59:59.999999Z"
    by_customer = Counter(event["customer_id"] for event in events)
    assert set(by_customer) == set(CUSTOMER_IDS)
    assert max(by_customer.values()) > 4 * min(by_customer.values())
    users = defaultdict(set)
    for event in events:
        if event["event_type"] == "assistant_session":
            users[event["customer_id"]].add(event["properties"]["user_id"])
    assert min(map(len, users.values())) == 5
    assert 50 <= max(map(len, users.values())) <= 60


def test_totals_equal_what_the_files_hold(demo: DemoData, recount: Recount) -> None:
    values: dict[tuple[str, str, str, str], list[Any]] = defaultdict(list)
    for event in recount.accepted.values():
        customer_id, month, properties = event["customer_id"], event["occurred_at"][:7], event["properties"]
        if event["event_type"] == "assistant_session":
            values["active_users", customer_id, "", month].append(properties["user_id"])
            values["session_seconds", customer_id, "", month].append(Decimal(properties["duration_seconds"]))
            continue
        service = f'{{"service":"{properties["service"]}"}}'
        values["requests", customer_id, "", month].append(1)
        values["context_tokens", customer_id, "", month].append(properties["context_tokens"])
        values["longest_context", customer_id, "", month].append(properties["context_tokens"])
        values["generated_tokens", customer_id, service, month].append(properties["generated_tokens"])
        if properties["service"] == "code":
            values["code_requests", customer_id, "", month].append(1)
    expected = {group: aggregate(group[0], items) for group, items in values.items()}

    month_ends = {"2026-09": "2026-10-01T00:00:00Z", "2026-10": "2026-11-01T00:00:00Z"}
    found = {}
    with demo.independent_totals.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        month = row["period_start_at"][:7]
        assert row["period_start_at"] == f"{month}-01T00:00:00Z"
        assert row["period_end_at"] == month_ends[month]
        assert row["source"] == "demo generator"
        found[row["metric_code"], row["customer_id"], row["dimensions"], month] = Decimal(row["quantity"])
    assert len(rows) == len(found) == demo.totals_rows
    assert found == expected


def test_smallest_data_set_has_every_kind_of_delivery(tmp_path: Path) -> None:
    demo = write_demo_data(tmp_path, events=200)
    assert (demo.accepted, demo.conflicts, demo.rejected) == (200, 3, 9)
    assert all(lines > 0 for lines in demo.lines_by_file.values())


def test_too_few_events_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ask for 200 or more"):
        write_demo_data(tmp_path / "none", events=199)
    assert not (tmp_path / "none").exists()


def test_result_is_frozen(demo: DemoData) -> None:
    with pytest.raises(FrozenInstanceError):
        demo.accepted = 0  # type: ignore[misc]
    with pytest.raises(TypeError):
        demo.lines_by_file["sessions.csv"] = 0  # type: ignore[index]
