"""Decides which Stripe the project talks to: the local server, Stripe in test mode, or Stripe live."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import requests
import stripe

from orchestration.lib.project import MeteringError
from orchestration.local_stripe import LocalStripeError, LocalStripeServer

Mode = Literal["local", "test", "live"]

LOCAL_KEY = "sk_test_local"
NETWORK_RETRIES = 3
REQUEST_SECONDS = 80.0
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")

SECRET_KEY = re.compile(r"(?:sk|rk)_(test|live)_[A-Za-z0-9_]+")
# Also the masked form in which Stripe repeats a wrong key ("sk_test_****abcd").
KEY_IN_TEXT = re.compile(r"\b(sk|rk)_(test|live)_[*_.-]*[A-Za-z0-9][A-Za-z0-9*_.-]*")


class StripeTargetError(MeteringError):
    """The environment does not name a Stripe that can be used. Messages never contain a key."""


@dataclass(frozen=True)
class StripeTarget:
    """A Stripe account to talk to.

    Attributes:
        client: the SDK's client, with the key inside.
        account_id: the account's id, from GET /v1/account.
        mode: local, test or live.
        label: for people, such as `Stripe test mode (acct_1)`.
    """

    client: stripe.StripeClient = field(repr=False)
    account_id: str
    mode: Mode
    label: str

    @property
    def log_account(self) -> str:
        """The name of the account in the sync log.

        An account has one id in test mode and live, but objects in one mode do not exist in the other (Stripe
        docs, "Test mode versus live mode"); so `acct_1:test` stands for test mode, `acct_1` for live.
        """
        return f"{self.account_id}:test" if self.mode == "test" else self.account_id


def redact_keys(text: str) -> str:
    """The text with every Stripe key in it, whole or masked, reduced to its prefix."""
    return KEY_IN_TEXT.sub(r"\1_\2_[redacted]", text)


def stripe_client(api_key: str, api_base: str | None) -> stripe.StripeClient:
    """A client that retries three times what can be retried.

    Args:
        api_key: a secret or restricted key.
        api_base: address such as `http://127.0.0.1:12111`, or None for Stripe's own. On this machine's
            loopback the environment's proxies are not used.
    """
    stripe.enable_telemetry = False
    # The SDK logs what Stripe answers, in which a key or a session's token may be repeated.
    logging.getLogger("stripe").setLevel(logging.WARNING)
    if api_base is None:
        return stripe.StripeClient(api_key, max_network_retries=NETWORK_RETRIES)
    session = requests.Session()
    session.trust_env = urlsplit(api_base).hostname not in LOOPBACK_HOSTS
    return stripe.StripeClient(
        api_key,
        base_addresses={"api": api_base, "meter_events": api_base},
        max_network_retries=NETWORK_RETRIES,
        http_client=stripe.RequestsClient(timeout=REQUEST_SECONDS, session=session),
    )


@contextmanager
def open_stripe_target(environ: Mapping[str, str], local_state: Path) -> Iterator[StripeTarget]:
    """The Stripe that the environment names, for the length of the `with` block.

    Without STRIPE_API_KEY a local server runs for that long. With it, Stripe itself is used, or the address
    in METERING_STRIPE_API_BASE. A live key also needs METERING_STRIPE_LIVE=1.

    Args:
        environ: the environment, such as `os.environ`.
        local_state: the local server's state file; made when it does not exist.

    Raises:
        StripeTargetError: on entering, when the key is empty or malformed, is a live key without consent, is
            refused, Stripe cannot be reached, or the local server cannot start.
    """
    if "STRIPE_API_KEY" not in environ:
        with ExitStack() as stack:
            try:
                server = stack.enter_context(LocalStripeServer(local_state))
            except LocalStripeError as error:
                raise StripeTargetError(str(error)) from error
            yield _identify(stripe_client(LOCAL_KEY, server.url), "local")
        return
    api_key = environ["STRIPE_API_KEY"].strip()
    mode = key_mode(api_key)
    if mode == "live" and environ.get("METERING_STRIPE_LIVE") != "1":
        raise StripeTargetError(
            "STRIPE_API_KEY is a live key, and METERING_STRIPE_LIVE is not 1. To bill real customers set "
            "METERING_STRIPE_LIVE=1; otherwise give a test key, or unset STRIPE_API_KEY for the local server."
        )
    yield _identify(stripe_client(api_key, _api_base(environ)), mode)


def key_mode(api_key: str) -> Literal["test", "live"]:
    """Test or live, by the key's prefix (Stripe docs, "API keys").

    Raises:
        StripeTargetError: the key is empty, or does not look like a secret or restricted key.
    """
    if api_key == "":
        raise StripeTargetError(
            "STRIPE_API_KEY is set but empty. Give it a key, or unset it to use the local Stripe server."
        )
    match = SECRET_KEY.fullmatch(api_key)
    if match is None:
        raise StripeTargetError(
            "STRIPE_API_KEY is not a Stripe secret or restricted key: those start with sk_test_, rk_test_, "
            "sk_live_ or rk_live_ and go on with letters and digits. Copy it again from the Stripe "
            "Dashboard, under API keys."
        )
    return "live" if match[1] == "live" else "test"


def _api_base(environ: Mapping[str, str]) -> str | None:
    api_base = environ.get("METERING_STRIPE_API_BASE", "").rstrip("/")
    if api_base == "":
        return None
    address = urlsplit(api_base)
    encrypted = address.scheme == "https" and address.hostname is not None
    if not encrypted and not (address.scheme == "http" and address.hostname in LOOPBACK_HOSTS):
        raise StripeTargetError(
            "METERING_STRIPE_API_BASE must start with https://, or with http:// for this machine "
            "(such as http://127.0.0.1:12111): the key would travel unencrypted."
        )
    return api_base


def _identify(client: stripe.StripeClient, mode: Mode) -> StripeTarget:
    names = {"local": "local Stripe server", "test": "Stripe test mode", "live": "Stripe live mode"}
    try:
        account_id = client.v1.accounts.retrieve_current().id
    except stripe.StripeError as error:
        reason = redact_keys(error.user_message or type(error).__name__)
        raise StripeTargetError(
            f"{names[mode]}: GET /v1/account failed (HTTP {error.http_status or 'no answer'}): {reason} "
            "Check STRIPE_API_KEY and the network; a restricted key must be allowed to read the account."
        ) from None
    return StripeTarget(client, account_id, mode, f"{names[mode]} ({account_id})")
