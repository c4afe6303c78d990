"""Serves the local Stripe over HTTP on 127.0.0.1: authentication, headers, start and stop."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self
from urllib.parse import parse_qsl

import stripe
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from .api import Answer, Api, new_id, unrecognized
from .control import Control, Fault, key_in_use, rate_limited, server_failed
from .errors import ApiError, LocalStripeError
from .meter_stream import STREAM
from .store import Store

HOST = "127.0.0.1"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
START_SECONDS = 20.0
STOP_SECONDS = 20.0

CONTROL_PATH = "/test_control"

logger = logging.getLogger(__name__)


class _DroppedError(Exception):
    """The connection is to be closed without an answer."""


class _DroppableProtocol(H11Protocol):
    """uvicorn's protocol, whose connections an endpoint can close without an answer."""

    open_transports: ClassVar[dict[tuple[str, int], asyncio.Transport]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is not None:
            self.open_transports[self.client] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.client is not None:
            self.open_transports.pop(self.client, None)


def build_app(store: Store, control: Control) -> Starlette:
    """The ASGI application over a state."""
    api = Api(store, control.now)

    async def endpoint(request: Request) -> Response:
        request_id = new_id("req", 14)
        try:
            if request.url.path == CONTROL_PATH:
                answer = await _control(control, request)
            else:
                answer = await _answer_or_fail(api, control, request, request_id)
        except _DroppedError:
            if request.client is not None:
                _DroppableProtocol.open_transports[(request.client.host, request.client.port)].abort()
            return Response(status_code=500)
        except ApiError as error:
            answer = Answer(error.status, error.body(), error.headers)
        except Exception:
            logger.exception("local Stripe: %s %s failed", request.method, request.url.path)
            failure = ApiError(500, "The local Stripe server failed; its log has the reason.", error_type="api_error")
            answer = Answer(failure.status, failure.body(), {})
        headers = {
            "Request-Id": request_id,
            "Stripe-Version": request.headers.get("Stripe-Version", stripe.api_version),
            **answer.headers,
        }
        if "Idempotency-Key" in request.headers:
            headers["Idempotency-Key"] = request.headers["Idempotency-Key"]
        return Response(answer.body, answer.status, headers, media_type="application/json")

    return Starlette(routes=[Route("/{path:path}", endpoint, methods=METHODS)])


async def _answer_or_fail(api: Api, control: Control, request: Request, request_id: str) -> Answer:
    """Answer a request, or let happen to it what the test control says."""
    control.check_rate()
    fault = control.take(request.method, request.url.path)
    if fault is None:
        return await _answer(api, request, request_id)
    await _fail_before(fault, request)
    answer = await _answer(api, request, request_id, fails_afterwards=fault.kind == "error_stored")
    if fault.kind == "error_after":
        raise server_failed()
    if fault.kind in ("drop_after", "hang_after"):
        await asyncio.sleep(fault.seconds)
        raise _DroppedError
    return answer


async def _fail_before(fault: Fault, request: Request) -> None:
    if fault.kind == "slow":
        await asyncio.sleep(fault.seconds)
    elif fault.kind == "error_before":
        raise server_failed()
    elif fault.kind == "conflict":
        raise key_in_use(request.url.path)
    elif fault.kind == "rate_limit":
        raise rate_limited("global-concurrency", fault.seconds)
    elif fault.kind in ("drop_before", "hang_before"):
        await asyncio.sleep(fault.seconds)
        raise _DroppedError


async def _control(control: Control, request: Request) -> Answer:
    """The test control over HTTP, for a server in another process."""
    form = dict(parse_qsl((await request.body()).decode()))
    try:
        if "advance_seconds" in form:
            control.advance(float(form.pop("advance_seconds")))
        if "requests_per_second" in form:
            control.requests_per_second = int(form.pop("requests_per_second"))
        if form.pop("clear", "") == "true":
            control.clear()
        if "kind" in form:
            numbers = {name: int(form.pop(name)) for name in ("skip", "times") if name in form}
            seconds = float(form.pop("seconds", "0"))
            control.add(Fault(seconds=seconds, **numbers, **form))  # type: ignore[arg-type]
        elif form:
            raise ValueError(f"unknown: {', '.join(form)}")
    except (TypeError, ValueError) as error:
        raise ApiError(400, f"{CONTROL_PATH}: {error}") from error
    return Answer(200, json.dumps({"now": control.now(), "injected": control.injected}), {})


async def _answer(api: Api, request: Request, request_id: str, *, fails_afterwards: bool = False) -> Answer:
    path = request.url.path
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    key = key if scheme.lower() == "bearer" else ""
    # The stream looks at the token of its session by itself.
    if path != STREAM:
        _authenticate(key)
    if request.method == "GET":
        return api.get(path, parse_qsl(request.url.query, keep_blank_values=True))
    if request.method == "DELETE":
        return api.delete(path)
    if request.method != "POST":
        raise unrecognized(request.method, path)
    body = await request.body()
    version, wanted = ("/v2", JSON) if path.startswith("/v2/") else ("/v1", FORM)
    content_type = request.headers.get("Content-Type", wanted)
    if body and not content_type.startswith(wanted):
        raise ApiError(400, f"Invalid request: {version} takes {wanted}, not {content_type}.")
    try:
        if version == "/v2":
            return api.post_json(path, body.decode(), key, fails_afterwards=fails_afterwards)
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError as error:
        raise ApiError(400, "Invalid request: the body is not UTF-8.") from error
    idempotency_key = request.headers.get("Idempotency-Key")
    return api.post(path, pairs, idempotency_key, request_id, fails_afterwards=fails_afterwards)


def _authenticate(key: str) -> None:
    """Accept any test key. Messages never repeat the key.

    Raises:
        ApiError: 401 when there is no bearer key, a live key, or something else.
    """
    if not key:
        raise ApiError(
            401,
            "You did not provide an API key. You need to provide your API key in the Authorization header, "
            "using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
        )
    if key.startswith(("sk_live_", "rk_live_")):
        raise ApiError(401, "This is a local Stripe server: it takes no live key. Use one starting with sk_test_.")
    if not key.startswith(("sk_test_", "rk_test_")):
        raise ApiError(401, "Invalid API Key provided: the local Stripe server takes keys starting with sk_test_.")


def _listen(port: int) -> socket.socket:
    # With the protocol named, asyncio turns Nagle's algorithm off; without, every answer waits 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise LocalStripeError(
            f"The local Stripe server cannot listen on {HOST}:{port} ({error.strerror}). "
            "End what uses the port, or choose another (0 for any free one)."
        ) from error
    return listener


def _uvicorn_server(store: Store, control: Control) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            build_app(store, control),
            lifespan="off",
            loop="asyncio",
            http=_DroppableProtocol,
            ws="none",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
        )
    )


class LocalStripeServer:
    """A local Stripe over HTTP while the `with` block runs, in a thread of this process.

    Args:
        state_path: the SQLite file with the account's state; made when it does not exist.
        port: to listen on, on 127.0.0.1; 0 takes any free one.

    Attributes:
        control: clock, rate limit and faults, for tests.
        url: base address such as `http://127.0.0.1:40123`, without a slash at the end; set inside the block.

    Raises:
        LocalStripeError: on entering, when the port or the state file cannot be used.
    """

    def __init__(self, state_path: Path, port: int = 0) -> None:
        self._state_path = state_path
        self._port = port
        self.control = Control()
        self.url = ""

    def __enter__(self) -> Self:
        self._listener = _listen(self._port)
        try:
            self._store = Store(self._state_path)
        except LocalStripeError:
            self._listener.close()
            raise
        self._server = _uvicorn_server(self._store, self.control)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, name="local-stripe", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self._stop()
                raise LocalStripeError(
                    f"The local Stripe server did not start in {START_SECONDS:.0f} s; its log has the reason."
                )
            time.sleep(0.01)
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}"
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)
        self._listener.close()
        self._store.close()


def serve_forever(state_path: Path, port: int) -> None:
    """Serve in the foreground until interrupted; prints the address once.

    Args:
        state_path: the SQLite file with the account's state; made when it does not exist.
        port: to listen on, on 127.0.0.1; 0 takes any free one.

    Raises:
        LocalStripeError: the port or the state file cannot be used.
    """
    listener = _listen(port)
    try:
        store = Store(state_path)
        print(f"local Stripe {store.account_id()} on http://{HOST}:{listener.getsockname()[1]}", flush=True)
        try:
            _uvicorn_server(store, Control()).run(sockets=[listener])
        finally:
            store.close()
    finally:
        listener.close()
