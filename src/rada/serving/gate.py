"""What stands before every request: who may ask, how much, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from typing import Any

from rada.core.extras import needed_for
from rada.core.printable import exact_json
from rada.serving.batches import busy
from rada.serving.metrics import Metrics
from rada.serving.problems import RequestError, problem_of
from rada.serving.settings import ServeSettings

with needed_for("rada serve"):
    from starlette.datastructures import Headers
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Gate", "answer"]

_log = logging.getLogger(__name__)

_OPEN = ("/health", "/ready", "/docs", "/openapi.json", "/static-offline-docs", "/")
PATHS = frozenset(
    {"/predict", "/models", "/health", "/ready", "/metrics", "/docs", "/openapi.json"}
)
_MOST_DROPPED = 256 << 20  # bytes of a body that was refused, which are taken all the same, ...
_DROP_SECONDS = 5.0  # ... and for how long
_LOCAL = ("127.0.0.1", "localhost", "[::1]")


class Gate:
    """Checks host, token, size and time around an application; every failure is JSON.

    Args:
        app: The application.
        settings: The limits.
        token: The secret, or None.
        metrics: What is counted.
    """

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, token: str | None, metrics: Metrics
    ) -> None:
        self._app, self._settings, self._token, self._metrics = app, settings, token, metrics
        self._held = 0  # bytes of bodies in memory
        self._most_held = max(8 * settings.max_body, 256 << 20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        call = _Call(self, receive, send)
        begun = time.perf_counter()
        self._metrics.active.inc()
        try:
            await self._guarded(scope, call)
        finally:
            self._held -= call.count
            self._metrics.active.dec()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - begun)
            self._metrics.requests.labels(path, str(call.status)).inc()

    async def _guarded(self, scope: Scope, call: _Call) -> None:
        limit = self._settings.timeout
        try:
            self._admit(scope)
            async with asyncio.timeout(limit):
                await self._app(scope, call.receive, call.send)
            return
        except TimeoutError:
            cause = f"it took more than {limit:g} seconds"
            problem = RequestError(504, "timeout", "the request", cause, "send fewer images")
            if not call.whole:
                cause = f"its body did not come within {limit:g} seconds"
                problem = RequestError(408, "timeout", "the request", cause, "send a smaller body")
        except Exception as error:
            known = problem_of(error)
            if known is None:
                _log.exception("a request failed")
            problem = known or failure()
        if call.status == 0:
            close = {} if call.whole else {"connection": "close"}
            await answer(problem.body(), problem.status, close)(scope, call.receive, call.send)

    def _admit(self, scope: Scope) -> None:
        """Refuse a request by its first lines."""
        headers = Headers(scope=scope)
        settings, path = self._settings, scope["path"]
        if self._token is None:
            # A page in the browser of this machine may name a host that leads here (DNS rebinding).
            host = headers.get("host", "")
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
            known = {one.lower() for one in (*_LOCAL, *settings.hosts, settings.host)}
            if name.lower() not in known:
                raise RequestError(
                    400, "host", host, "is not a name of this service", "use 127.0.0.1"
                )
        elif not (path in _OPEN or path.startswith("/static-offline-docs/")):
            given = headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
                raise RequestError(
                    401,
                    "token",
                    "Authorization",
                    "the token is missing or wrong",
                    "send the header Authorization: Bearer TOKEN",
                )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > settings.max_body:
            raise self.too_large()

    def too_large(self) -> RequestError:
        """Return the answer to a body that is too large."""
        limit = self._settings.max_body
        return RequestError(
            413,
            "body",
            "the body",
            f"it has more than {limit} bytes",
            "send fewer or smaller images",
        )

    def hold(self, count: int, total: int) -> None:
        """Account for bytes that came.

        Args:
            count: The new ones.
            total: All of the request.

        Raises:
            RequestError: 413 or 503 if they are too many.
        """
        if total > self._settings.max_body:
            raise self.too_large()
        if self._held + count > self._most_held:
            raise busy("its memory for requests is full")
        self._held += count


class _Call:
    """One request, its bytes counted."""

    def __init__(self, gate: Gate, receive: Receive, send: Send) -> None:
        self._gate, self._receive, self._send = gate, receive, send
        self.count, self.status, self.whole = 0, 0, False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            new = len(message.get("body", b""))
            self._gate.hold(new, self.count + new)
            self.count += new
            self.whole = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif not message.get("more_body", False) and not self.whole:
            # Many clients read an answer only when all of their body is sent, and would find the connection
            # reset: the answer goes out, and ends when the rest of the body was dropped.
            await self._send({**message, "more_body": True})
            message = {"type": "http.response.body"}
            try:
                await self._drop()
            finally:
                await self._send(message)
            return
        await self._send(message)

    async def _drop(self) -> None:
        """Take what still comes of the body, within bounds, and keep none of it."""
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DROP_SECONDS):
                while not self.whole and dropped <= _MOST_DROPPED:
                    message = await self._receive()
                    dropped += len(message.get("body", b""))
                    self.whole = not message.get("more_body", False)


def failure() -> RequestError:
    """Return the answer of a service that failed by itself; its log says how."""
    return RequestError(
        500, "failure", "the service", "it failed by itself", "tell whoever runs it to read its log"
    )


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return JSON that any client can read."""
    more = dict(headers or {})
    if status == 503:
        more["retry-after"] = "1"
    if status == 401:
        more["www-authenticate"] = "Bearer"
    more["x-content-type-options"] = "nosniff"
    return Response(exact_json(content), status, more, "application/json")
