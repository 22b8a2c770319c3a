"""All sessions of a server: each has its own folder, and none is kept for ever."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import shutil
import threading
import time
from pathlib import Path
from tempfile import mkdtemp

from rada.app.brain import Brain
from rada.app.config import AppConfig
from rada.app.session import Session
from rada.core.errors import RadaError
from rada.core.warn import warn

__all__ = ["Hall", "read_cookie"]


class Hall:
    """Sessions by the token that a browser keeps.

    Args:
        brain: The shared encoder.
        config: The bounds.
        folder: Where sessions lie; a temporary folder when None, deleted at the end.
    """

    def __init__(self, brain: Brain, config: AppConfig, folder: Path | None = None) -> None:
        self.brain, self.config = brain, config
        self.folder = Path(mkdtemp(prefix="rada-app-")) if folder is None else folder
        self._secret = secrets.token_bytes(32)
        self._sessions: dict[str, Session] = {}
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._closed = False
        threading.Thread(target=self._encode, name="rada-encode", daemon=True).start()

    # -- tokens ----------------------------------------------------------------------------------

    def new_token(self) -> str:
        """Return a token that nobody can guess, signed so that no other one is taken."""
        name = secrets.token_hex(16)
        return f"{name}.{self._signature(name)}"

    def is_token(self, token: str | None) -> bool:
        """Whether a token is one of this server's."""
        name, _, signature = (token or "").partition(".")
        return hmac.compare_digest(signature.encode(), self._signature(name).encode())

    def _signature(self, name: str) -> str:
        return hmac.new(self._secret, name.encode(), hashlib.sha256).hexdigest()[:32]

    # -- sessions --------------------------------------------------------------------------------

    def session(self, token: str | None) -> Session:
        """Return the session of a token, a new one if need be.

        Raises:
            PermissionError: If the token is not one of this server's.
        """
        if token is None or not self.is_token(token):
            raise PermissionError("there is no session: open the page again, with cookies allowed")
        name = token.partition(".")[0]
        with self._lock:
            self._sweep(keep=name)
            if name not in self._sessions:
                self._sessions[name] = Session(self.folder / name, self.brain, self.config)
            self._used[name] = time.monotonic()
            return self._sessions[name]

    def forget(self, token: str) -> None:
        """Delete a session with everything in it."""
        with self._lock:
            self._drop(token.partition(".")[0])

    def close(self) -> None:
        """End all sessions."""
        self._closed = True
        self._work.set()
        with self._lock:
            for name in list(self._sessions):
                self._drop(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._sessions)

    def _sweep(self, keep: str) -> None:
        limit = time.monotonic() - 60 * self.config.keep_minutes
        for name, used in list(self._used.items()):
            if used < limit:
                self._drop(name)
        room = self.config.max_sessions - (keep not in self._sessions)
        idle = sorted((used, name) for name, used in self._used.items() if name != keep)
        for _, name in idle[: max(0, len(self._sessions) - room)]:
            self._drop(name)

    def _drop(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        self._used.pop(name, None)
        if session is not None:
            session.close()
            shutil.rmtree(self.folder / name, ignore_errors=True)

    # -- looking at images -----------------------------------------------------------------------

    def wake(self) -> None:
        """Say that there are new images to look at."""
        self._work.set()

    def _encode(self) -> None:
        while not self._closed:
            self._work.wait()
            self._work.clear()
            busy = True
            while busy and not self._closed:
                busy = False
                for session in list(self._sessions.values()):  # in turn: nobody waits for another
                    try:
                        busy = session.encode_some() > 0 or busy
                    except (RadaError, OSError) as error:  # its files went away with it
                        warn(f"images were not looked at: {error}", UserWarning, stacklevel=2)


def read_cookie(header: str, name: str) -> str | None:
    """Return a cookie of a request's header.

    Example:
        >>> read_cookie("a=1; b=2", "b"), read_cookie("", "b")
        ('2', None)
    """
    for part in header.split(";"):
        key, there, value = part.strip().partition("=")
        if there and key == name:
            return value
    return None
