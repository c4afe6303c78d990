"""Runs the sync many times against faults drawn from a seed, and counts lines lost and doubled in Stripe.

In process, for speed: the real SDK and the local Stripe's own endpoints, without a socket between them, and a DuckDB in
memory. Each run has an outbox of its own. Faults happen around every call to Stripe and around every transaction of the
log: an answer is lost before or after the effect, or the process dies there. A call of several lines may be refused for
one of them, or for one after others were added, though Stripe is not known to do that. Between two syncs pass no time,
25 hours or 40 days of Stripe's clock, so that idempotency keys are forgotten. A second worker may sync everything in the middle of a
call of the first: half of the time it takes over the lock, else it is refused. People finalise drafts at any time, so that
what is left goes on a further invoice. Runs end with syncs without faults; then
every line must be in Stripe once, with its amount.

Some lines go to meters: as an event, by the v1 API in one half of the runs and by the v2 stream in the other, or as an
invoice item where they are too old by then, or are corrections of more than their meter has. Events share minutes,
customers and values, so that sums tell little. Each must be there once, and not in both ways; no event may come after
Stripe has finalised its invoice, and no minute may have less than nothing.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import duckdb
import requests
import stripe

from orchestration.lib.project import PROJECT_DIR
from orchestration.lib.stripe_lock import SyncLockError, hold_sync_lock
from orchestration.lib.stripe_meters import MeterReport, sync_outboxes
from orchestration.lib.stripe_plan import ITEMS_PER_INVOICE
from orchestration.lib.stripe_settings import InvoiceSettings, MeterApi
from orchestration.lib.stripe_sync_report import SyncReport
from orchestration.lib.stripe_target import StripeTarget
from orchestration.lib.warehouse import (
    DuckDBWarehouse,
    Parameters,
    Result,
    Warehouse,
    raw_and_ops_table_statements,
)
from orchestration.local_stripe.api import IDEMPOTENCY_SECONDS, Answer, Api
from orchestration.local_stripe.control import Control, key_in_use, rate_limited, server_failed
from orchestration.local_stripe.errors import ApiError
from orchestration.local_stripe.store import Store

# Chosen for each call: most of them succeed, else no run would get anywhere.
CALL_FAULTS = {
    "none": 70,
    "killed before the call": 4,
    "killed after the call": 6,
    "connection lost before the effect": 3,
    "connection lost after the effect": 4,
    "500 before the effect": 2,
    "500 after the effect": 3,
    "500 after the effect, stored": 3,
    "409 key in use": 1,
    "429": 2,
    "429 for longer than is waited": 1,
    "refused": 1,
    "refused, naming a line": 1,
    "refused after a part of it": 1,
    "another worker syncs before the effect": 1,
    "another worker syncs after the effect": 1,
    "a person finalises the drafts before the call": 3,
}
LOG_FAULTS = {"none": 94, "killed before the rows are durable": 3, "killed after the rows are durable": 3}
PAUSES = {0.0: 4, 25 * 3600.0: 2, 40 * 86400.0: 1}
GRACES = {timedelta(hours=1): 1, timedelta(hours=72): 4, timedelta(hours=839): 3}
# Of the ends of service periods.
AGES = {timedelta(minutes=40): 1, timedelta(hours=2): 5, timedelta(days=2.5): 2, timedelta(days=34.9): 1}
MOST_FAULTY_SYNCS = 8
MOST_QUIET_SYNCS = 6
# Between quiet syncs, so that the sums of minutes are settled.
QUIET_PAUSE = 2 * 3600.0


class Killed(BaseException):
    """The process is gone; the sync catches nothing like it."""


@dataclass
class Tally:
    """What a campaign did and found."""

    runs: int = 0
    syncs: int = 0
    refused_by_lock: int = 0
    calls: int = 0
    lines: int = 0
    events: int = 0
    corrections: int = 0
    streamed: int = 0
    metered_as_items: int = 0
    corrected_as_items: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    wrong_amount: int = 0
    doubled_invoices: int = 0
    not_finalized: int = 0
    below_nothing: int = 0
    after_the_grace: int = 0
    unsettled: int = 0
    failing_seeds: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not self.failing_seeds

    def describe(self) -> str:
        lines = [
            f"{self.runs:,} runs, {self.syncs:,} syncs, {self.calls:,} calls to Stripe, {self.lines:,} ledger lines, "
            f"of which {self.events:,} as meter events ({self.corrections:,} negative, {self.streamed:,} by the stream) and {self.metered_as_items:,} "
            f"({self.corrected_as_items:,} negative) that meters could not take",
            f"{self.refused_by_lock:,} syncs refused or stopped because another held the lock",
            f"{sum(self.faults.values()):,} faults injected:",
            *(f"  {count:>9,}  {name}" for name, count in sorted(self.faults.items())),
            f"lost {self.lost}, doubled {self.doubled}, wrong amount {self.wrong_amount}, "
            f"doubled invoices {self.doubled_invoices}, not finalised {self.not_finalized}, "
            f"never clean {self.unsettled}, minutes below nothing {self.below_nothing}, "
            f"events after their invoice {self.after_the_grace}",
        ]
        if self.failing_seeds:
            lines.append(f"failing runs: {', '.join(self.failing_seeds[:10])}")
        return "\n".join(lines)


class FaultyStripe(stripe.HTTPClient):
    """The SDK's transport, answered by the local Stripe's endpoints in this process, with faults."""

    name = "in-process"

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def request(  # type: ignore[override]
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None
    ) -> tuple[bytes, int, Any]:
        fault = self._run.draw_call_fault()
        # A second worker is another process: nothing of what it does reaches the first but through Stripe and the log.
        if fault == "killed before the call":
            raise Killed
        if fault == "connection lost before the effect":
            raise stripe.APIConnectionError("connection lost")  # type: ignore[no-untyped-call]
        if fault == "another worker syncs before the effect":
            self._run.other_worker()
        if fault == "a person finalises the drafts before the call":
            self._run.finalize_drafts()
        try:
            answer = self._answer(fault, method, url, dict(headers or {}), post_data or "")
        except ApiError as error:
            answer = Answer(error.status, error.body(), error.headers)
        if fault == "killed after the call":
            raise Killed
        if fault == "connection lost after the effect":
            raise stripe.APIConnectionError("connection lost")  # type: ignore[no-untyped-call]
        if fault == "another worker syncs after the effect":
            self._run.other_worker()
        return answer.body.encode(), answer.status, requests.structures.CaseInsensitiveDict(answer.headers)

    def _answer(self, fault: str, method: str, url: str, headers: dict[str, str], form: str) -> Answer:
        api, path = self._run.api, urlsplit(url).path
        if fault == "500 before the effect":
            raise server_failed()
        if fault == "409 key in use":
            raise key_in_use(path)
        if fault.startswith("429"):
            raise rate_limited("global-rate", 600 if "longer" in fault else 1)
        pairs = parse_qsl(form, keep_blank_values=True)
        key = headers.get("Idempotency-Key")
        self._run.repeat_refusal(key)
        if fault == "refused after a part of it" and path.endswith("/add_lines"):
            first = [(name, value) for name, value in pairs if name.startswith("lines[0]")]
            api.post(path, first, None, "req_chaos")
        if fault.startswith("refused"):
            param = "lines[1][amount]" if "naming" in fault else None
            refusal = ApiError(402, "refused by the campaign", code="refused", param=param)
            self._run.keep_refusal(key, refusal)
            raise refusal
        if method == "post" and path.startswith("/v2/"):
            token = headers["Authorization"].removeprefix("Bearer ")
            answer = api.post_json(path, form, token, fails_afterwards=fault.endswith("stored"))
        elif method == "get":
            answer = api.get(path, parse_qsl(urlsplit(url).query, keep_blank_values=True))
        else:
            answer = api.post(path, pairs, key, "req_chaos", fails_afterwards=fault.endswith("stored"))
        if fault == "500 after the effect":
            raise server_failed()
        return answer

    def close(self) -> None:
        """Nothing is open."""


class FaultyWarehouse(DuckDBWarehouse):
    """The warehouse of one process of several, which may die just before or after rows are durable."""

    is_of_one_process = False

    def __init__(self, connection: duckdb.DuckDBPyConnection, run: Run) -> None:
        super().__init__(connection)
        self._run = run
        self.is_dead = False

    def execute(self, sql: str, parameters: Parameters = ()) -> Result:
        if self.is_dead:
            raise Killed
        return super().execute(sql, parameters)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        if self.is_dead:
            raise Killed
        fault = self._run.draw(LOG_FAULTS)
        with super().transaction():
            yield
            if fault == "killed before the rows are durable":
                raise Killed
        if fault == "killed after the rows are durable":
            raise Killed


class Run:
    """One outbox, one Stripe, and syncs until all is there."""

    def __init__(self, seed: str, connection: duckdb.DuckDBPyConnection, tally: Tally) -> None:
        self._random = random.Random(seed)
        self._seed = seed
        self._connection = connection
        self._tally = tally
        self._is_quiet = False
        self._depth = 0
        self._refusals: dict[str, tuple[float, ApiError]] = {}
        self.control = Control()
        self._store = Store(Path(":memory:"))
        self.api = Api(self._store, self.control.now)
        client = stripe.StripeClient("sk_test_chaos", max_network_retries=0, http_client=FaultyStripe(self))
        self._target = StripeTarget(client, self._store.account_id(), "local", "local Stripe server")
        self._grace = self._choose(GRACES)
        self._meter_api: MeterApi = self._random.choice(["v1", "v2"])
        self._expected = self._fill_outbox()

    def execute(self) -> None:
        """Sync with faults, then without, and count what is wrong."""
        finalizes = self._random.random() < 0.3
        for _ in range(self._random.randint(1, MOST_FAULTY_SYNCS)):
            self._sync(finalizes)
            self.control.advance(self._choose(PAUSES))
        self._is_quiet = True
        for _ in range(MOST_QUIET_SYNCS):
            reports = self._sync(finalizes)
            if reports is not None and _is_done(*reports):
                break
            self.control.advance(QUIET_PAUSE)
        else:
            self._tally.unsettled += 1
            self._fail()
        self._judge(finalizes)
        self._store.close()

    def draw(self, weights: Mapping[str, int]) -> str:
        fault = "none" if self._is_quiet else self._choose(weights)
        if fault != "none":
            self._tally.faults[fault] += 1
        return fault

    def draw_call_fault(self) -> str:
        self._tally.calls += 1
        # One other worker at a time.
        weights = CALL_FAULTS
        if self._depth > 1:
            weights = {name: weight for name, weight in weights.items() if not name.startswith("another worker")}
        return self.draw(weights)

    def other_worker(self) -> None:
        """A whole sync by another process, which may itself die; it takes over from one that is alive, or says so."""
        self._sync(finalizes=False, take_over=self._random.random() < 0.5)

    def keep_refusal(self, key: str | None, refusal: ApiError) -> None:
        """As Stripe does with every answer to a request that it has begun to execute (Stripe docs, "Idempotent requests")."""
        if key is not None:
            self._refusals[key] = (self.control.now() + IDEMPOTENCY_SECONDS, refusal)

    def repeat_refusal(self, key: str | None) -> None:
        until, refusal = self._refusals.get(key or "", (0.0, None))
        if refusal is not None and self.control.now() < until:
            raise refusal

    def finalize_drafts(self) -> None:
        """What a person does in Stripe."""
        for invoice in self._store.all("invoice"):
            if invoice.status == "draft":
                self.api.post(f"/v1/invoices/{invoice.id}/finalize", [], None, "req_chaos")

    def _sync(self, finalizes: bool, take_over: bool = True) -> tuple[MeterReport, SyncReport] | None:
        """A sync by a process of its own. Those before it are dead, so it may take over."""
        self._tally.syncs += 1
        self._depth += 1
        warehouse = FaultyWarehouse(self._connection.cursor(), self)
        try:
            with hold_sync_lock(warehouse, self._target.log_account, take_over=take_over) as lock:
                try:
                    return sync_outboxes(
                        warehouse,
                        self._target,
                        billing_period=None,
                        progress=lambda _: None,
                        settings=InvoiceSettings(
                            finalizes=finalizes, meter_grace=self._grace, meter_api=self._meter_api
                        ),
                        sleep=lambda _: None,
                        now=self._now,
                        lock=lock,
                    )
                except Killed:
                    warehouse.is_dead = True
                    raise
        except Killed:
            return None
        except SyncLockError:
            self._tally.refused_by_lock += 1
            return None
        finally:
            self._depth -= 1

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.control.now(), UTC).replace(tzinfo=None)

    def _fill_outbox(self) -> dict[str, tuple[str, str, int]]:
        """Invoice, currency and amount of each line that must reach Stripe."""
        self._connection.execute("delete from marts.stripe_invoice_items")
        self._connection.execute("delete from marts.stripe_meter_events")
        rows: list[dict[str, object]] = []
        for invoice in range(self._random.randint(1, 3)):
            customer = f"customer_{self._random.randint(1, 2)}"
            currency = self._random.choice(["USD", "EUR", "JPY"])
            lines = self._random.randint(1, 5)
            if self._random.random() < 0.005:
                lines = ITEMS_PER_INVOICE + 3
            is_priced = self._random.random() < 0.3
            rows += [
                {
                    "line_id": f"line_{invoice}_{number:03}",
                    "invoice_id": f"{customer}/2026-10/{currency}/{invoice}",
                    "run_id": "2026-10.1",
                    "customer_id": customer,
                    "billing_period": "2026-10",
                    "service_period_start_at": datetime(2026, 10, 1),
                    "service_period_end_at": datetime(2026, 11, 1),
                    "currency": currency,
                    "amount_minor": amount,
                    "description": "usage",
                    "metric_code": "calls",
                    # Shown where the amount is no credit.
                    "quantity": abs(amount) * 4 if is_priced else None,
                    "unit_amount_minor": Decimal("0.25") if is_priced else None,
                    "hold_reason": self._choose({None: 5, "metric_not_confirmed": 1, "meter_event": 4}),
                }
                for number in range(lines)
                for amount in [self._random.choice([-1, 1, 1]) * self._random.randint(1, 10**7)]
            ]
        self._connection.executemany(
            f"insert into marts.stripe_invoice_items ({', '.join(rows[0])}) values ({', '.join('?' for _ in rows[0])})",
            [list(row.values()) for row in rows],
        )
        self._metered = self._fill_meters([row for row in rows if row["hold_reason"] == "meter_event"])
        sent = [row for row in rows if row["hold_reason"] != "metric_not_confirmed"]
        self._partly_held = {str(row["invoice_id"]) for row in rows if row["hold_reason"] == "metric_not_confirmed"}
        self._tally.lines += len(sent)
        return {
            str(row["line_id"]): (str(row["invoice_id"]), str(row["currency"]).lower(), int(str(row["amount_minor"])))
            for row in sent
        }

    def _fill_meters(self, rows: list[dict[str, object]]) -> dict[str, tuple[tuple[str, str, int], int]]:
        """Meter, customer and minute (seconds), and value of each line that meters take if it is not too old."""
        metered = {}
        self._counted_until: dict[str, float] = {}
        places: dict[str, list[tuple[str, datetime, datetime]]] = {}
        for row in rows:
            line_id, customer = str(row["line_id"]), str(row["customer_id"])
            of_customer = places.setdefault(customer, [])
            if not of_customer or self._random.random() < 0.4:
                end = (self._now() - self._choose(AGES)).replace(second=0, microsecond=0)
                minute = end - timedelta(minutes=self._random.randint(1, 2))
                of_customer.append((self._random.choice(["calls", "bytes"]), minute, end))
            name, minute, end = self._random.choice(of_customer)
            value = self._random.choice([-3, -2, -2, 1, 2, 2, 3, 10**14])
            self._connection.execute(
                """
                insert into marts.stripe_meter_events
                    (line_id, rated_line_id, customer_id, billing_period, event_name, display_name, value_units, event_at,
                    service_period_start_at, service_period_end_at)
                values (?, ?, ?, '2026-10', ?, ?, ?, ?, ?, ?)
                """,
                [line_id, line_id, customer, name, name, value, minute, end - timedelta(days=30), end],
            )
            metered[line_id] = ((name, customer, int(minute.replace(tzinfo=UTC).timestamp())), value)
            self._counted_until[line_id] = (end + self._grace).replace(tzinfo=UTC).timestamp()
        return metered

    def _judge_meters(self, as_items: set[str]) -> tuple[int, int]:
        """Values lost and doubled, minute by minute: expected is what has not become an item.

        Of events of one minute that add up to the same it does not matter which ones are there.
        """
        customers = {
            customer.id: customer.body["metadata"]["metering_customer_id"] for customer in self._store.all("customer")
        }
        actual: dict[tuple[str, str, int], list[int]] = {}
        late = 0
        for event in self._store.all_meter_events():
            if event.error_code is None:
                group = (event.event_name, customers[event.customer], event.timestamp)
                actual.setdefault(group, []).append(event.value)
                late += event.received > self._counted_until[event.identifier.rpartition("-")[0]]
        expected: dict[tuple[str, str, int], list[int]] = {}
        for line_id, (group, value) in self._metered.items():
            if line_id not in as_items:
                expected.setdefault(group, []).append(value)
        lost = doubled = 0
        for group in actual.keys() | expected.keys():
            wanted, found = Counter(expected.get(group, [])), Counter(actual.get(group, []))
            if sum(wanted.elements()) != sum(found.elements()):
                lost += (wanted - found).total()
                doubled += (found - wanted).total()
        below = sum(sum(values) < 0 for values in actual.values())
        values = [value for values in actual.values() for value in values]
        items = [self._metered[line_id][1] for line_id in as_items & self._metered.keys()]
        self._tally.events += len(values)
        self._tally.streamed += len(values) if self._meter_api == "v2" else 0
        self._tally.corrections += sum(value < 0 for value in values)
        self._tally.metered_as_items += len(items)
        self._tally.corrected_as_items += sum(value < 0 for value in items)
        self._tally.below_nothing += below
        self._tally.after_the_grace += late
        if below or late:
            self._fail()
        return lost, doubled

    def _judge(self, finalizes: bool) -> None:
        """Hold Stripe's own objects against the outbox, without the sync's eyes."""
        found: Counter[str] = Counter()
        wrong = 0
        for item in self._store.all("invoiceitem"):
            line_id = item.body["metadata"].get("metering_line_id", "none")
            found[line_id] += 1
            expected = self._expected.get(line_id)
            actual = (item.body["metadata"].get("metering_invoice_id"), item.body["currency"], item.body["amount"])
            wrong += expected != actual
        invoices = Counter(
            (invoice.body["metadata"]["metering_invoice_id"], invoice.body["metadata"]["metering_invoice_part"])
            for invoice in self._store.all("invoice")
        )
        drafts = {
            invoice.body["metadata"]["metering_invoice_id"]
            for invoice in self._store.all("invoice")
            if invoice.status == "draft"
        }
        lost, doubled = self._judge_meters(set(found))
        lost += sum(found[line_id] == 0 for line_id in self._expected.keys() - self._metered.keys())
        doubled += sum(count - 1 for count in found.values())
        doubled_invoices = sum(count - 1 for count in invoices.values())
        left_open = len(drafts - self._partly_held) if finalizes else 0
        self._tally.lost += lost
        self._tally.doubled += doubled
        self._tally.wrong_amount += wrong
        self._tally.doubled_invoices += doubled_invoices
        self._tally.not_finalized += left_open
        if lost or doubled or wrong or doubled_invoices or left_open:
            self._fail()

    def _choose(self, weights: Mapping[Any, int]) -> Any:
        return self._random.choices(list(weights), list(weights.values()))[0]

    def _fail(self) -> None:
        if self._seed not in self._tally.failing_seeds:
            self._tally.failing_seeds.append(self._seed)


def _is_done(events: MeterReport, items: SyncReport) -> bool:
    """Nothing was left to do."""
    found = events.sent + events.confirmed_by_lookup + items.created + items.confirmed_by_lookup
    return events.is_clean and items.is_clean and found == 0


def create_outbox(warehouse: Warehouse) -> None:
    """An empty outbox, with the columns that the sync reads."""
    warehouse.execute("create schema if not exists marts")
    warehouse.execute(
        """
        create table marts.stripe_invoice_items (
            line_id varchar, invoice_id varchar, run_id varchar, customer_id varchar, customer_name varchar,
            stripe_customer_id varchar, billing_period varchar, service_period_start_at timestamp,
            service_period_end_at timestamp, currency varchar, amount_minor bigint, description varchar,
            subscription_id varchar, metric_code varchar, charge_code varchar, price_version integer, hold_reason varchar,
            quantity decimal(38, 9), unit_amount_minor decimal(26, 12)
        )
        """
    )
    warehouse.execute(
        """
        create table marts.stripe_meter_events (
            line_id varchar, rated_line_id varchar, customer_id varchar, billing_period varchar, event_name varchar,
            display_name varchar, value_units bigint, event_at timestamp, hold_reason varchar,
            service_period_start_at timestamp, service_period_end_at timestamp
        )
        """
    )


def run_campaign(runs: int, seed: int) -> Tally:
    """Run a campaign.

    Args:
        runs: how many outboxes to bring into Stripe.
        seed: of all that is drawn; run n of a seed is always the same.
    """
    tally = Tally()
    connection = duckdb.connect()
    for statement in raw_and_ops_table_statements(PROJECT_DIR):
        connection.execute(statement)
    create_outbox(DuckDBWarehouse(connection))
    for number in range(runs):
        connection.execute("delete from ops.stripe_sync_log")
        Run(f"{seed}:{number}", connection, tally).execute()
        tally.runs += 1
    connection.close()
    return tally
