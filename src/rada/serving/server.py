"""The service as a process: it starts, says where it is, and stops when what is in flight is done."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from rada.core.errors import ConfigError
from rada.core.extras import needed_for
from rada.serving.app import create_app
from rada.serving.settings import ServeSettings, check_token

with needed_for("rada serve"):
    import uvicorn

if TYPE_CHECKING:
    from rada.classifier import Classifier

__all__ = ["Service", "serve"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Service(uvicorn.Server):
    """A service that is ready to run.

    Args:
        classifiers: The models by name; the first is asked where a request names none.
        settings: Where it listens, and its limits.
        token: The secret that requests have to send; needed where other machines get in.

    Raises:
        ConfigError: If other machines get in without a token, or the place cannot be listened at.

    Example:
        >>> from rada import Classifier
        >>> service = Service({"pets": Classifier("embedded", classes=["cat", "dog"])}, ServeSettings(port=0))
        >>> with service.background() as address:
        ...     address.startswith("http://127.0.0.1:")
        True
    """

    def __init__(
        self,
        classifiers: Mapping[str, Classifier],
        settings: ServeSettings | None = None,
        token: str | None = None,
    ) -> None:
        settings = settings or ServeSettings()
        check_token(settings, token)
        self._socket = _listen(settings)
        try:
            app = create_app(classifiers, settings, token)
        except BaseException:
            self._socket.close()
            raise
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=max(1, round(settings.drain)),
                timeout_keep_alive=30,
                limit_concurrency=4 * settings.max_waiting,
            )
        )

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, which are the usual end of a service and no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Answer requests until it is told to stop."""
        self.run(sockets=[self._socket])

    @contextlib.contextmanager
    def background(self) -> Iterator[str]:
        """Answer requests in a thread while the block runs; yields the address."""
        thread = threading.Thread(target=self.listen, name="rada-service", daemon=True)
        thread.start()
        try:
            yield self.address
        finally:
            self.should_exit = True
            thread.join()


def _listen(settings: ServeSettings) -> socket.socket:
    """Return a socket that listens: requests that come while models are loaded wait."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"nothing can listen at {settings.host}:{settings.port} ({error.strerror or error}): choose "
            "another --port, or stop what listens there"
        ) from error


def serve(
    classifiers: Mapping[str, Classifier],
    settings: ServeSettings | None = None,
    token: str | None = None,
    *,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Answer requests until SIGTERM or SIGINT comes; what is in flight is finished.

    Args:
        classifiers: The models by name.
        settings: Where it listens, and its limits.
        token: The secret that requests have to send.
        started: Called with the address when models are loaded.

    Raises:
        ConfigError: As for `Service`.
    """
    service = Service(classifiers, settings, token)
    started(service.address)
    service.listen()
