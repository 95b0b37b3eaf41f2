"""A real MariaDB for tests, on 127.0.0.1 and in a temporary folder; it ends with the process that started it."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pymysql

from export_pipelines.local import binaries
from export_pipelines.local.mariadb import Address, Server


@contextmanager
def mariadb_server() -> Iterator[Address]:
    """Run Debian's MariaDB without fsync until the block is left. A server that is missing is an error."""
    folder = Path(tempfile.mkdtemp(prefix="export-pipelines-"))
    folder.chmod(0o711)  # root runs it as another user, who must get in
    server = Server(folder, fsync=False, die_with_parent=True)
    try:
        yield server.ensure_running()
    finally:
        server.stop()
        for made in [folder, *binaries.data_folders(folder)]:
            binaries.remove(made)


@contextmanager
def new_mysql_database(server: Address) -> Iterator[str]:
    """Make an empty database, give its URL, and drop it at the end."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    run_mysql(server.url(""), f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
    try:
        yield server.url(name)
    finally:
        end_sessions(server, name)
        run_mysql(server.url(""), f"DROP DATABASE `{name}`")


def end_sessions(server: Address, database: str) -> None:
    """End all sessions that use a database: one that was left in a transaction would block a DROP for ever."""
    for (session,) in run_mysql(
        server.url(""), "SELECT id FROM information_schema.processlist WHERE db = %s", (database,)
    ):
        try:
            run_mysql(server.url(""), f"KILL {session}")
        except pymysql.err.OperationalError as error:
            if error.args[0] != 1094:  # it has ended by itself
                raise


def mysql_connection(url: str, **options: Any) -> Any:
    """A PyMySQL connection, each statement committed by itself unless `autocommit=False`."""
    parts = urlsplit(url)
    given = {
        "host": parts.hostname,
        "port": parts.port,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "database": parts.path.strip("/") or None,
        "charset": "utf8mb4",
        "autocommit": True,
    }
    return pymysql.connect(**{**given, **options})


def run_mysql(url: str, sql: str, values: Any = None) -> list[tuple[Any, ...]]:
    """Run one statement by itself and return its rows, if it gives any."""
    with closing(mysql_connection(url)) as connection, connection.cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall()) if cursor.description else []
