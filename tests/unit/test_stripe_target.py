"""Which Stripe the sync talks to, and the secrecy of its key."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import stripe

from orchestration.lib.stripe_readback import read_back_invoices
from orchestration.lib.stripe_sync import sync_invoice_items
from orchestration.lib.stripe_target import StripeTargetError, open_stripe_target, redact_keys
from orchestration.local_stripe import LocalStripeServer
from tests.unit.stripe_outbox import SECRET, Warehouse, target_of, three_invoices


def test_without_a_key_the_local_server_is_used_and_keeps_its_account(state: Path) -> None:
    accounts = set()
    for _ in range(2):
        with open_stripe_target({}, state) as target:
            accounts.add(target.account_id)
            assert target.mode == "local"
            assert target.label == f"local Stripe server ({target.account_id})"
            assert target.log_account == target.account_id
            assert stripe.enable_telemetry is False
    assert len(accounts) == 1


def test_a_test_key_uses_the_given_address(server: LocalStripeServer, tmp_path: Path) -> None:
    environ = {"STRIPE_API_KEY": f" {SECRET}\n", "METERING_STRIPE_API_BASE": f"{server.url}/"}
    unused = tmp_path / "unused.sqlite"
    with open_stripe_target(environ, unused) as target:
        assert target.mode == "test"
        assert target.account_id == target_of(server).account_id
        assert target.log_account == f"{target.account_id}:test"
    assert not unused.exists()


@pytest.mark.parametrize("key", ["sk_live_51Hq8Zk3vXwYb9", "rk_live_51Hq8Zk3vXwYb9"])
@pytest.mark.parametrize("consent", [None, "", "0", "true"])
def test_a_live_key_needs_consent(server: LocalStripeServer, state: Path, key: str, consent: str | None) -> None:
    environ = {"STRIPE_API_KEY": key, "METERING_STRIPE_API_BASE": server.url}
    if consent is not None:
        environ["METERING_STRIPE_LIVE"] = consent
    with (
        pytest.raises(StripeTargetError, match="METERING_STRIPE_LIVE=1") as caught,
        open_stripe_target(environ, state),
    ):
        pass
    assert key not in repr(caught.value)


def test_a_live_key_with_consent_is_sent(server: LocalStripeServer, state: Path) -> None:
    """The local server then refuses it, which shows that it arrived."""
    key = "sk_live_51Hq8Zk3vXwYb9"
    environ = {"STRIPE_API_KEY": key, "METERING_STRIPE_LIVE": "1", "METERING_STRIPE_API_BASE": server.url}
    with (
        pytest.raises(StripeTargetError, match="takes no live key") as caught,
        open_stripe_target(environ, state),
    ):
        pass
    assert key not in repr(caught.value)


@pytest.mark.parametrize("key", ["", "  ", "pk_test_abc", "sk_test_", "sk_test_a b", "sk_test_a\nX: y", "abcdefgh"])
def test_a_malformed_key_is_refused_without_being_repeated(state: Path, key: str) -> None:
    with (
        pytest.raises(StripeTargetError, match="STRIPE_API_KEY") as caught,
        open_stripe_target({"STRIPE_API_KEY": key}, state),
    ):
        pass
    assert key.strip() in ("", "sk_test_") or key not in str(caught.value)


@pytest.mark.parametrize("base", ["http://stripe.example.com", "ftp://127.0.0.1", "127.0.0.1:1", "https://"])
def test_a_key_is_not_sent_unencrypted(state: Path, base: str) -> None:
    environ = {"STRIPE_API_KEY": SECRET, "METERING_STRIPE_API_BASE": base}
    with (
        pytest.raises(StripeTargetError, match="METERING_STRIPE_API_BASE"),
        open_stripe_target(environ, state),
    ):
        pass


def test_an_unreachable_stripe_is_named(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)
    with LocalStripeServer(state) as server:
        environ = {"STRIPE_API_KEY": SECRET, "METERING_STRIPE_API_BASE": server.url}
    with (
        pytest.raises(StripeTargetError, match="GET /v1/account failed") as caught,
        open_stripe_target(environ, state),
    ):
        pass
    assert SECRET not in repr(caught.value)


def test_the_key_shows_up_nowhere(
    warehouse: Warehouse,
    server: LocalStripeServer,
    state: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    three_invoices(warehouse)
    warehouse.add("l5", charge_code="x" * 501)
    messages: list[str] = []
    environ = {"STRIPE_API_KEY": SECRET, "METERING_STRIPE_API_BASE": server.url}
    with open_stripe_target(environ, state) as target:
        report = sync_invoice_items(warehouse.opened, target, billing_period=None, progress=messages.append)
        read_back_invoices(target)
        shown = [repr(target), str(target), repr(report), *messages]
    assert (report.created, report.failed) == (4, 1)
    shown += [str(row) for row in warehouse.log()]
    shown += [record.getMessage() for record in caplog.records]
    shown += [*capfd.readouterr()]
    # Other libraries log at DEBUG; the SDK would log each answer.
    assert len(caplog.records) > 10
    assert [record for record in caplog.records if record.name == "stripe"] == []
    assert all(SECRET not in text for text in shown)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"key {SECRET}.", "key sk_test_[redacted]"),
        ("rk_live_abcDEF123, wrong", "rk_live_[redacted], wrong"),
        ("Invalid API Key provided: sk_test_****abcd", "Invalid API Key provided: sk_test_[redacted]"),
        ("keys start with sk_test_.", "keys start with sk_test_."),
    ],
)
def test_keys_are_redacted(text: str, redacted: str) -> None:
    assert redact_keys(text) == redacted
