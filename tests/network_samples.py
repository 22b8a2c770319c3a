"""Servers on this machine that answer badly."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def hanging_server(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Serve one answer after the other, the last for ever, and keep each connection open.

    Yields:
        The address, and the requests that came.
    """
    asked: list[bytes] = []
    open_ones: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    open_ones.append(connection)
                    asked.append(connection.recv(4096))
                    connection.sendall(answers[min(len(asked), len(answers)) - 1])

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        finally:
            for connection in open_ones:
                connection.close()
