"""What a service may be asked, and how much of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from rada.core.config import Config
from rada.core.errors import ConfigError

__all__ = ["ServeSettings", "check_token", "is_loopback"]

_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class ServeSettings(Config):
    """Where a service listens, and its limits.

    Attributes:
        host: Address to listen at; others than this machine reach it only with a token.
        port: Port; 0 takes a free one.
        hosts: Names that a request may give as its host, beside the address; all of them with a token.
        allow_urls: Read images at public http and https URLs.
        max_body: Most bytes of a request.
        max_pixels: Most pixels of an image.
        max_images: Most images of a request.
        max_classes: Most classes of a request.
        max_waiting: Most images that wait at once; further requests are answered 503.
        timeout: Most seconds for a request.
        batch_size: Most images that are encoded at once.
        batch_wait: Seconds that an image waits for others.
        processes: Processes that read and encode images on a CPU; None takes one for each core where there
            are several, and none where `threads` are asked for. 0 leaves it to threads of the service.
        threads: Threads that encode where no processes do; None takes one, with all cores.
        drain: Seconds for what is in flight when the service is told to stop.

    Example:
        >>> ServeSettings(port=0).host
        '127.0.0.1'
    """

    host: str = "127.0.0.1"
    port: int = 8000
    hosts: tuple[str, ...] = ()
    allow_urls: bool = False
    max_body: int = 32 << 20
    max_pixels: int = 2**26
    max_images: int = 64
    max_classes: int = 1000
    max_waiting: int = 256
    timeout: float = 30.0
    batch_size: int = 16
    batch_wait: float = 0.002
    processes: int | None = None
    threads: int | None = None
    drain: float = 30.0

    def validate(self) -> None:
        """Check the ranges."""
        self.require(0 <= self.port <= 65535, "port", "in [0, 65535]")
        for name in ("max_pixels", "max_images", "max_classes", "max_waiting", "batch_size"):
            self.require(getattr(self, name) >= 1, name, "1 or more")
        self.require(self.max_body >= 1024, "max_body", "1024 or more")
        self.require(self.timeout > 0, "timeout", "above 0")
        self.require(0 <= self.batch_wait <= 1, "batch_wait", "in [0, 1]")
        self.require(self.drain >= 0, "drain", "0 or more")
        self.require(
            self.processes is None or self.processes >= 0, "processes", "None or 0 or more"
        )
        self.require(self.threads is None or self.threads >= 1, "threads", "None or 1 or more")


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(settings: ServeSettings, token: str | None) -> None:
    """Check that nobody else can use a service that has no token.

    Raises:
        ConfigError: If the service listens to others without a token, or the token can be guessed.
    """
    if token is None and not is_loopback(settings.host):
        raise ConfigError(
            f"the host {settings.host!r} lets other machines in, and there is no token: put a secret of "
            f"{_SHORTEST_TOKEN} characters or more into a file and give --token-file, or into "
            "RADA_SERVE_TOKEN; or listen at 127.0.0.1"
        )
    if token is not None and (len(token) < _SHORTEST_TOKEN or not token.isascii()):
        raise ConfigError(
            f"the token has {len(token)} characters: a secret of {_SHORTEST_TOKEN} or more is needed, in "
            "ASCII, as `openssl rand -hex 32` prints"
        )
