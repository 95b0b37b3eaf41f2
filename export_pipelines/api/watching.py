"""Hears of changes from the catalog (LISTEN) and wakes whoever waits for one: one connection for the process."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2
from psycopg2 import sql

from export_pipelines.catalog.tokens import CHANGED
from export_pipelines.errors import ExportPipelinesError
from export_pipelines.sources.postgres import PostgresSource

log = logging.getLogger("export_pipelines.api")

_LOOK_SECONDS = 30.0
_AGAIN_SECONDS = 1.0


class Bell:
    """What somebody in an event loop waits for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake who waits. From any thread."""
        with suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> None:
        """Return when it rings, or after some seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        self._event.clear()


class Watcher:
    """Listens in a thread of its own from the first bell on. What is told while the connection is away is made up for:
    all bells ring when it is back."""

    def __init__(self, url: str, channel: str, *, tokens_changed: Callable[[], None]) -> None:
        self._source = PostgresSource(url, {"application_name": "export_pipelines_watcher"})
        self._channel = channel
        self._tokens_changed = tokens_changed
        self._bells: dict[str, set[Bell]] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._wake, self._waker = os.pipe()

    @property
    def stopping(self) -> bool:
        """Whether the service ends, so that nobody should wait any more."""
        return self._stopping

    @contextmanager
    def bell(self, request: str) -> Iterator[Bell]:
        """A bell that rings when a request changes."""
        bell = Bell()
        with self._lock:
            self._bells.setdefault(request, set()).add(bell)
        try:
            yield bell
        finally:
            with self._lock:
                self._bells[request].discard(bell)
                if not self._bells[request]:
                    del self._bells[request]

    def start(self) -> None:
        """Begin to listen."""
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nobody waits any more; the thread goes on until `close`. Safe in a signal handler."""
        self._stopping = True
        with suppress(OSError):
            os.write(self._waker, b"x")

    def close(self) -> None:
        """End the thread."""
        self.stop()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None
            os.close(self._waker)
            os.close(self._wake)

    def _run(self) -> None:
        while not self._stopping:
            try:
                connection = self._source.connect()
            except ExportPipelinesError as error:
                log.warning("changes of requests are not heard of: %s", error.message)
                select.select([self._wake], [], [], _AGAIN_SECONDS)
                continue
            with suppress(psycopg2.Error, OSError, ValueError):
                self._listen(connection)
            with suppress(psycopg2.Error):
                connection.close()
        self._ring_all()

    def _listen(self, connection: Any) -> None:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
        # What was told before is unknown.
        self._tokens_changed()
        self._ring_all()
        while not self._stopping:
            ready, _, _ = select.select([connection, self._wake], [], [], _LOOK_SECONDS)
            if not ready:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1")  # a connection that is dead without a word is noticed
            connection.poll()
            for each in {notice.payload for notice in connection.notifies}:
                self._heard(each)
            connection.notifies.clear()

    def _heard(self, payload: str) -> None:
        if payload == CHANGED:
            self._tokens_changed()
            return
        with self._lock:
            found = tuple(self._bells.get(payload, ()))
        for bell in found:
            bell.ring()

    def _ring_all(self) -> None:
        with self._lock:
            found = [bell for bells in self._bells.values() for bell in bells]
        for bell in found:
            bell.ring()
