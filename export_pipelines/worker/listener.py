"""LISTEN on the channel of the catalog: which requests have changed, the moment they do."""

from __future__ import annotations

import time
from typing import Any

import psycopg2

from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.errors import SourceError
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.sql import quote_identifier

APPLICATION = "export_pipelines_worker"
"""Name of the connection: who looks for a worker finds it in pg_stat_activity."""
_AGAIN_SECONDS = 1.0


class Listener:
    """One connection, opened again when it was lost. Without it the worker looks by the clock."""

    def __init__(self, url: str, pool: CatalogPool) -> None:
        self._source = PostgresSource(url, {"application_name": APPLICATION})
        self._channel = pool.channel
        self._connection: Any = None
        self._tried_at = -_AGAIN_SECONDS

    @property
    def connected(self) -> bool:
        """Whether notifications come."""
        return self._connection is not None

    def fileno(self) -> int:
        """For `select`, while connected."""
        return int(self._connection.fileno())

    def connect(self) -> bool:
        """Connect if that is needed, at most once a second; whether it has just been done: much may have changed."""
        if self._connection is not None or time.monotonic() - self._tried_at < _AGAIN_SECONDS:
            return False
        self._tried_at = time.monotonic()
        try:
            connection = self._source.connect()
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {quote_identifier(self._channel)}")
        except (SourceError, psycopg2.Error):
            return False
        self._connection = connection
        return True

    def heard(self) -> set[str]:
        """Ids of the requests that have changed since the last call."""
        if self._connection is None:
            return set()
        try:
            self._connection.poll()
            found = {str(each.payload) for each in self._connection.notifies}
            self._connection.notifies.clear()
        except psycopg2.Error:
            self.close()
            return set()
        return found

    def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
