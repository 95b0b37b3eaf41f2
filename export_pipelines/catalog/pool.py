"""Connections to the catalog for many threads at once: what the service and its worker use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self

import psycopg2
import psycopg2.extras

from export_pipelines.catalog.failures import catalog_error
from export_pipelines.errors import CatalogError, SourceError
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.sql import quote_identifier

_RECYCLE_SECONDS = 300
_WAIT_SECONDS = 10


class CatalogPool:
    """At most `size` connections, opened as they are needed. One transaction a call; its rows are dictionaries.

    A connection that was lost is noticed before it is used again. Not to be used on the other side of a fork.
    """

    def __init__(self, url: str, schema: str = "export_pipelines", *, size: int = 4) -> None:
        from sqlalchemy.pool import QueuePool

        self._source = PostgresSource(url, {"application_name": "export_pipelines_service"})
        self.schema = schema
        self._pool = QueuePool(
            self._source.connect, pool_size=size, max_overflow=0, timeout=_WAIT_SECONDS, recycle=_RECYCLE_SECONDS
        )

    @property
    def channel(self) -> str:
        """Name of the channel (LISTEN) on which changes of requests are told, by their ids."""
        return f"{self.schema}_requests"

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """A cursor in a transaction, READ COMMITTED, which commits when the block is left without an error.

        Raises:
            CatalogError: the catalog is away (transient), missing, or of another version.
        """
        with self._cursor() as cursor:
            try:
                cursor.execute(f"BEGIN; {self._here}")
                yield cursor
            except BaseException:
                with suppress(psycopg2.Error):
                    cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    def rows(self, sql: str, values: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        """All rows of one statement, in a transaction of its own: one round trip to the server."""
        here = self._here.replace("%", "%%") if values else self._here
        with self._cursor() as cursor:
            # Several statements in one string are one transaction.
            cursor.execute(f"{here}; {sql}", values or None)
            return [dict(row) for row in cursor.fetchall()] if cursor.description else []

    @property
    def _here(self) -> str:
        # Local to the transaction, as a transaction pooler needs.
        return f"SET LOCAL search_path TO {quote_identifier(self.schema)}"

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        """A cursor of a connection in autocommit. Errors of the driver become ours."""
        from sqlalchemy.exc import TimeoutError as PoolTimeout

        try:
            checked_out = self._pool.connect()
        except SourceError as error:
            raise CatalogError(f"catalog: {error.message}", hint=error.hint, transient=error.transient) from error
        except PoolTimeout:
            raise CatalogError("catalog: all connections are in use", transient=True) from None
        connection: Any = checked_out.dbapi_connection
        try:
            if not connection.autocommit:
                connection.autocommit = True
            with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                yield cursor
        except psycopg2.InterfaceError as error:
            checked_out.invalidate()
            raise CatalogError("catalog: the connection was lost", transient=True) from error
        except psycopg2.Error as error:
            lost = isinstance(error, psycopg2.OperationalError)
            if lost:
                checked_out.invalidate()
            raise catalog_error(error, self._source.name, transient=lost) from error
        finally:
            checked_out.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._pool.dispose()
