"""Several at work at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, Protocol

import psycopg2

from tests.support.tables import Kit


@contextmanager
def transaction(kit: Kit) -> Iterator[Any]:
    """A cursor of another session's transaction, which the block ends."""
    with closing(psycopg2.connect(kit.database)) as connection, connection.cursor() as cursor:
        yield cursor


class Runs(Protocol):
    """A server of our own."""

    def run(self) -> None: ...

    def stop(self) -> None: ...


@contextmanager
def in_background(server: Runs) -> Iterator[None]:
    """It runs in a thread of its own until the block is left."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join()


@contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Do it in another thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def waiting(kit: Kit) -> bool:
    """Whether a session of ours waits for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(kit.rows(query)[0])
