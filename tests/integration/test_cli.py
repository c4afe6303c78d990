"""The command line as a person meets it: a process, its output and its exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run_metering(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("STRIPE", "METERING"))}
        variables |= {"METERING_DUCKDB_PATH": str(tmp_path / "metering.duckdb"), "METERING_TARGET": "ci"} | environment
        return subprocess.run(
            [str(Path(sys.executable).with_name("metering")), *arguments],
            capture_output=True,
            text=True,
            env=variables,
            cwd=tmp_path,
            timeout=300,
            check=False,
        )

    return run_metering


def test_help_and_wrong_usage(run: Run) -> None:
    outcome = run("--help")
    assert outcome.returncode == 0
    for command in ("load", "build", "check", "sync", "invoices", "explain", "statement", "shadow", "demo"):
        assert re.search(rf"^  {command} ", outcome.stdout, re.MULTILINE)
    assert run("load").returncode == 2
    outcome = run("build", "--as-of", "tomorrow")
    assert outcome.returncode == 2
    assert "'tomorrow' is not an ISO 8601 date and time" in outcome.stderr
    for arguments in (
        ("close", "--period", "9999-12"),
        ("sync", "--period", "October"),
        ("invoices", "--period", "2026-13"),
        ("shadow", "--period", "2026-1"),
        ("whatif", ".", "--from", "2026-00"),
        ("whatif", ".", "--to", "26-10"),
    ):
        outcome = run(*arguments)
        assert outcome.returncode == 2, arguments
        assert f"'{arguments[-1]}' is no billing period: give a calendar month such as 2026-10." in outcome.stderr


def test_errors_are_plain_and_exit_with_1(run: Run, tmp_path: Path) -> None:
    for arguments, message in (
        (("load", "missing.jsonl"), "missing.jsonl: no such file"),
        (("invoices",), "run metering build first"),
        (("sync",), "Nothing has been built yet"),
    ):
        outcome = run(*arguments)
        assert outcome.returncode == 1, arguments
        assert message in outcome.stderr
        assert "Traceback" not in outcome.stderr
    assert run("check", METERING_TARGET="prod").returncode == 1


def test_from_a_file_to_a_draft_invoice(run: Run, tmp_path: Path, make_event: Callable[..., dict[str, Any]]) -> None:
    """Two customers in September, one line of each kind worked out by hand."""
    events = [
        make_event(f"a{n}", customer_id="cus_009", p_context_tokens=100_000, p_generated_tokens=1_000)
        for n in range(10)
    ]
    events += [make_event("b0", customer_id="cus_004", occurred_at="2026-09-30T14:59:59Z")]
    events += [make_event("b1", customer_id="cus_004", occurred_at="2026-09-30T15:00:00Z")]  # October in Tokyo
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert run("load", "events.jsonl").returncode == 0
    assert run("build").returncode == 0

    outcome = run("invoices", "--customer", "cus_009", "--period", "2026-09")
    assert outcome.returncode == 0
    lines = re.findall(
        r"^  (\w{10}| {10})  (\S.*?)\s{2,}.*?([\d,.]+)(?:  held: not_closed)?$", outcome.stdout, re.MULTILINE
    )
    assert {description: amount for _, description, amount in lines} == {
        # 1,000,000 tokens, 250,000 included and 125,000 left from August: 500,000 at 2.5 and 125,000 at 2 per million.
        "Context tokens": "1.50",
        # 10,000 tokens at 10 per million.
        'Generated tokens {"service": "code"}': "0.10",
        # 100,000 tokens at 100 per million, and at most 5.
        "Longest context of the month": "5.00",
        # October's, in advance.
        "Platform fee": "20.00",
        # One package of 100 started, at 0.04.
        "Requests, per 100 started": "0.04",
        "total USD": "26.64",
    }
    invoices = re.split(r"^(?=cus_004)", run("invoices", "--customer", "cus_004").stdout, flags=re.MULTILINE)
    periods = [invoice.split()[0] for invoice in invoices if "Requests" in invoice]
    assert periods == ["cus_004/2026-09/JPY", "cus_004/2026-10/JPY"]

    context_line = next(line_id for line_id, description, _ in lines if description == "Context tokens")
    outcome = run("explain", context_line, "--events")
    assert outcome.returncode == 0
    assert "250,000 included in the service period + 125,000 rolled over; 375,000 of it used here" in outcome.stdout
    assert "above 0, up to 500,000: 500,000 × 0.0000025 → 1.25" in outcome.stdout
    assert "the SQL below lists 10 in the warehouse now" in outcome.stdout
    assert len(re.findall(r"^2026-09-10 12:00:00  a\d", outcome.stdout, re.MULTILINE)) == 10
    outcome = run("explain", "feed")
    assert outcome.returncode == 1
    assert "No invoice line has the id 'feed'" in outcome.stderr

    outcome = run("sync", "--period", "2026-09")
    assert outcome.returncode == 0
    assert "lines: 0 created" in outcome.stdout  # Nothing is billed before it is closed.
    outcome = run("close", "--period", "2026-09")
    assert outcome.returncode == 0, outcome.stderr
    outcome = run("sync", "--period", "2026-09", "--dry-run")
    assert outcome.returncode == 0
    would_send = int(re.findall(r"^would send (\d+) lines", outcome.stdout, re.MULTILINE)[0])
    outcome = run("sync", "--period", "2026-09")
    assert outcome.returncode == 0
    created = int(re.findall(r"lines: (\d+) created", outcome.stdout)[0])
    assert created == would_send
    assert created > 40  # A platform fee for each customer, and the usage of two.
    outcome = run("sync", "--period", "2026-09")
    assert outcome.returncode == 0
    assert f"lines: 0 created, 0 found in Stripe, {created} there already" in outcome.stdout

    outcome = run("sync", STRIPE_API_KEY="sk_live_abcdefghijklmnop1234567890")
    assert outcome.returncode == 1
    assert "METERING_STRIPE_LIVE" in outcome.stderr
    assert "abcdefghijklmnop1234567890" not in outcome.stdout + outcome.stderr


def test_demo_prints_invoices_that_agree_with_stripe(run: Run) -> None:
    outcome = run("demo")
    assert outcome.returncode == 0, outcome.stderr
    assert (
        "20,412 deliveries = 20,000 accepted + 403 duplicates (3 conflicting) + 9 rejected, 0 dropped" in outcome.stdout
    )
    assert "ok   accuracy: 192 measured, 0 in breach" in outcome.stdout
    # As the README has it, whatever month it is.
    assert "3 billing runs, 344 lines; of the last: run 2026-10.1: 40 customers closed, 157 lines" in outcome.stdout
    assert re.search(r"^second sync: 0 lines created, 309 there already$", outcome.stdout, re.MULTILINE)
    assert re.search(r"^120 invoices agree with Stripe to the minor unit$", outcome.stdout, re.MULTILINE)
    assert "DIFFERS" not in outcome.stdout
