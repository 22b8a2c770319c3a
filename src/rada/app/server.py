"""What a browser talks to: uploads, images and downloads beside the page, behind one guard."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rada.app.album import Role
from rada.app.archives import is_archive
from rada.app.hall import Hall, read_cookie
from rada.core.errors import ConfigError, DataError, RadaError
from rada.core.extras import needed_for

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

    from rada.app.session import Session

__all__ = ["LOOPBACK", "Guard", "build_server", "check_binding", "serve"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST_PASSWORD = 8
LARGEST_REQUEST = 1_000_000
"""Bytes of what a page says; files come by a way of their own, with bounds of their own."""
_UPLOADS = "/rada/images"

# Nothing of the page comes from elsewhere; Gradio's own scripts are compiled in the page.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
# Of Gradio's own interface, what the page uses. The rest has ways to and from the disk, to other hosts, and
# to what other people do.
_OPEN = ("queue/join", "queue/data", "heartbeat/")
_SHUT = ("/monitoring", "/login", "/logout", "/svelte", "/vibe")

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


def check_binding(host: str, password: str | None) -> None:
    """Check that nobody else's browser gets in unasked.

    Raises:
        ConfigError: If other machines could reach the app and there is no password, or a short one.

    Example:
        >>> check_binding("127.0.0.1", None)
        >>> check_binding("0.0.0.0", None)
        Traceback (most recent call last):
        ...
        rada.core.errors.ConfigError: other machines can reach the app at '0.0.0.0', so it needs a password: \
set RADA_APP_PASSWORD, or leave --host out
    """
    if password is not None and len(password) < SHORTEST_PASSWORD:
        raise ConfigError(
            f"the password is too short: {SHORTEST_PASSWORD} characters or more are needed"
        )
    if host not in LOOPBACK and password is None:
        raise ConfigError(
            f"other machines can reach the app at {host!r}, so it needs a password: set "
            "RADA_APP_PASSWORD, or leave --host out"
        )


class Guard:
    """Stands before everything: host, password, origin, the session's cookie, and headers.

    Args:
        app: What is behind it.
        hall: The sessions.
        cookie: Name of the cookie.
        password: Asked of everybody; None asks nobody, and only names of this machine are then taken (a page
            elsewhere could otherwise point a name of its own at this machine).
    """

    pause = 0.5
    """Seconds that a wrong password takes: eight characters cannot be tried out so."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        hall: Hall,
        cookie: str,
        password: str | None,
    ) -> None:
        self.app, self.hall, self.cookie, self.password = app, hall, cookie, password
        self._guessing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the page uses no web sockets
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            if refusal[0] == 401 and "authorization" in headers:
                async with self._guessing:  # one guess at a time, whoever makes it
                    await asyncio.sleep(self.pause)
            await _refuse(send, *refusal)
            return
        if scope["path"] != _UPLOADS:
            receive = _bounded(receive)
        token = read_cookie(headers.get("cookie", ""), self.cookie)
        fresh = None if self.hall.is_token(token) else self.hall.new_token()
        scope.setdefault("state", {})["token"] = token if fresh is None else None

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [
                    (b"content-security-policy", _POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    (b"cross-origin-resource-policy", b"same-origin"),
                ]
                if fresh is not None and scope["path"] == "/":
                    seconds = 60 * self.hall.config.keep_minutes
                    said = f"{self.cookie}={fresh}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict"
                    extra.append((b"set-cookie", said.encode()))
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        await self.app(scope, receive, answer)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, bytes] | None:
        host = headers.get("host", "")
        if self.password is None and _host_name(host) not in LOOPBACK:
            return 400, "this app answers on this machine alone", b""
        if self.password is not None and not _knows(
            headers.get("authorization", ""), self.password
        ):
            return 401, "a password is needed", b'Basic realm="rada", charset="UTF-8"'
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD"):
            if origin is not None and origin.partition("://")[2] != host:
                return 403, "a request from another page", b""
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, "a request from another page", b""
        path = str(scope["path"])
        inner = path.removeprefix("/gradio_api/")
        if path.startswith(_SHUT) or (inner != path and not inner.startswith(_OPEN)):
            return 404, "there is nothing here", b""
        length = headers.get("content-length", "0")
        if path != _UPLOADS and (not length.isdecimal() or int(length) > LARGEST_REQUEST):
            return 413, "too large", b""
        return None


def _host_name(host: str) -> str | None:
    """Return the name in a Host header, without the port; None where it is no name.

    Example:
        >>> _host_name("localhost:7860"), _host_name("[::1]:80"), _host_name("[")
        ('localhost', '::1', None)
    """
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _bounded(receive: Receive) -> Receive:
    """Return a reader that gives up where a request is larger than it said."""
    size = 0

    async def read() -> MutableMapping[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return message if size <= LARGEST_REQUEST else {"type": "http.disconnect"}

    return read


def _knows(header: str, password: str) -> bool:
    """Whether the header of HTTP's Basic authentication has the password; any name goes with it."""
    kind, _, value = header.partition(" ")
    try:
        given = base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return False
    return kind.lower() == "basic" and hmac.compare_digest(given.encode(), password.encode())


async def _refuse(send: Send, status: int, text: str, challenge: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    if challenge:
        headers.append((b"www-authenticate", challenge))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


# -- what is beside the page ---------------------------------------------------------------------


def build_server(hall: Hall, *, port: int, password: str | None = None) -> FastAPI:
    """Return the whole application: routes, page and guard.

    Args:
        hall: The sessions.
        port: The port, which the cookie is named after: cookies do not know ports.
        password: As for `Guard`.

    Raises:
        MissingExtraError: If Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported
    with needed_for("the app"):
        import gradio
        from fastapi import FastAPI
    from rada.app.page import build_page, page_options

    cookie = f"rada_{port}"
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    routes = _Routes(hall)
    app.add_route(_UPLOADS, routes.take, methods=["POST"])
    app.add_route("/rada/images/{number:int}", routes.image, methods=["GET"])
    app.add_route("/rada/model.zip", routes.model, methods=["GET"])
    app.add_route("/rada/report.html", routes.report, methods=["GET"])
    page = build_page(hall, cookie)
    gradio.mount_gradio_app(app, page, path="", ssr_mode=False, show_error=True, **page_options())
    app.add_middleware(Guard, hall=hall, cookie=cookie, password=password)
    return app


class _Routes:
    """The ways to and from the disk, each for the session of its cookie alone."""

    def __init__(self, hall: Hall) -> None:
        self.hall = hall

    def _session(self, request: Request) -> Session:
        return self.hall.session(getattr(request.state, "token", None))

    async def take(self, request: Request) -> Response:
        """Take one file in, an image or a zip archive, piece by piece."""
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse

        name = request.query_params.get("name", "")[:1000]
        try:
            session = self._session(request)
        except PermissionError as error:
            return JSONResponse({"error": str(error)}, 403)
        role: Role = "try" if request.query_params.get("role") == "try" else "learn"
        path = session.album.folder / f"upload-{secrets.token_hex(8)}"
        try:
            with path.open("xb") as file, session.album.arriving() as arriving:
                limit, size, start = self.hall.config.max_file_megabytes * 1_000_000, 0, b""
                async for chunk in request.stream():
                    if not start and is_archive(chunk):
                        limit = self.hall.config.max_total_megabytes * 1_000_000
                    start = start or bytes(chunk[:4])
                    size += len(chunk)
                    if size > limit:
                        session.intake.refuse(name, f"it has more than {limit / 1e6:,.0f} MB")
                        return JSONResponse({"error": "too large"}, 413)
                    arriving(len(chunk))
                    file.write(chunk)
            if is_archive(start):
                await run_in_threadpool(session.add_archive, path, name, role)
            else:
                await run_in_threadpool(lambda: session.add(path.read_bytes(), name, role))
        except ClientDisconnect:  # the tab was closed
            return JSONResponse({"error": "broken off"}, 400)
        except (RadaError, OSError) as error:
            session.intake.refuse(name, str(error))
            return JSONResponse({"error": str(error)}, 507)
        finally:
            path.unlink(missing_ok=True)
        self.hall.wake()
        return JSONResponse({"images": len(session.album)})

    async def image(self, request: Request) -> Response:
        """Show one image of the session."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import PlainTextResponse, Response

        large = request.query_params.get("size") == "large"
        try:
            album = self._session(request).album
            number = int(request.path_params["number"])
            content = await run_in_threadpool(album.shown, number, large=large)
        except (PermissionError, DataError, OSError):
            return PlainTextResponse("there is no such image", 404)
        return Response(
            content, media_type="image/jpeg", headers={"Cache-Control": "private, no-store"}
        )

    async def model(self, request: Request) -> Response:
        """Hand the model over."""
        return await self._download(request, "model_archive", "application/zip", "rada-model.zip")

    async def report(self, request: Request) -> Response:
        """Hand the report over."""
        return await self._download(request, "report", "text/html", "rada-report.html")

    async def _download(self, request: Request, what: str, kind: str, name: str) -> Response:
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import PlainTextResponse, Response

        try:
            content = await run_in_threadpool(getattr(self._session(request), what))
        except PermissionError as error:
            return PlainTextResponse(str(error), 403)
        except RadaError as error:
            return PlainTextResponse(str(error), 409)
        said = {
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "no-store",
        }
        return Response(content, media_type=kind, headers=said)


def serve(
    hall: Hall,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until Ctrl-C; then every session is deleted.

    Raises:
        ConfigError: As `check_binding`, or if the port is taken.
    """
    import socket

    check_binding(host, password)
    app = build_server(hall, port=port, password=password)
    with needed_for("the app"):
        import uvicorn

    class _Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            # What is broken off now is nobody's error.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            super().handle_exit(sig, frame)

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} of {host!r} cannot be used: {error.strerror or error}; choose another "
                "with --port"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        say(f"The app is at http://{shown}:{listener.getsockname()[1]} - Ctrl-C ends it.")
        # A page that is open keeps a connection: without a limit Ctrl-C would wait for the last tab.
        server = _Server(
            uvicorn.Config(
                app, log_level="warning", server_header=False, timeout_graceful_shutdown=1
            )
        )
        try:
            server.run(sockets=[listener])
        finally:
            hall.close()
