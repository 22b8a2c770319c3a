"""A lock that another thread holds while a process is forked."""

from __future__ import annotations

import os
import threading
import time

import pytest

from rada.core.locks import fork_safe_lock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")


def test_a_forked_process_gets_it_free() -> None:
    lock, taken = fork_safe_lock(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if lock.acquire(timeout=10) else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    assert lock.acquire(timeout=10)
    lock.release()
