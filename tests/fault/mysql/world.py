"""What the suite runs in: a MariaDB of its own that may be killed, a catalog, accounts, and lines that can be cut."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pymysql

from export_pipelines.catalog.migrate import migrate
from export_pipelines.local import binaries
from export_pipelines.local.children import port_is_free
from export_pipelines.local.mariadb import Server
from tests.fault.world import Line, line_to, wait_until
from tests.support.mariadb import mysql_connection, run_mysql
from tests.support.servers import new_database, postgres_server

PROGRAM, WRITER, ADMIN = "program", "writer", "suite"
_ACCOUNTS = (
    "CREATE DATABASE faults CHARACTER SET utf8mb4",
    "CREATE DATABASE ledger CHARACTER SET utf8mb4",
    f"CREATE USER '{PROGRAM}'@'127.0.0.1' IDENTIFIED BY %(password)s",
    # No more than the documentation asks for.
    f"GRANT SELECT, DELETE ON faults.* TO '{PROGRAM}'@'127.0.0.1'",
    f"GRANT PROCESS ON *.* TO '{PROGRAM}'@'127.0.0.1'",
    f"CREATE USER '{WRITER}'@'127.0.0.1' IDENTIFIED BY %(password)s",
    f"GRANT ALL PRIVILEGES ON faults.* TO '{WRITER}'@'127.0.0.1'",
    # Root has another password after each start.
    f"CREATE USER '{ADMIN}'@'127.0.0.1' IDENTIFIED BY %(password)s",
    f"GRANT ALL PRIVILEGES ON *.* TO '{ADMIN}'@'127.0.0.1'",
)


@dataclass
class MysqlWorld:
    """Servers and a folder. `source`, `writer` and `admin` are URLs of one database by several accounts."""

    folder: Path
    server: Server
    source: str
    writer: str
    admin: str
    catalog: str

    def crash(self) -> None:
        """Kill the server with SIGKILL, and start it again: it recovers what was committed."""
        pid = int((self.server.data / "server.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        process = self.server._process
        assert process is not None
        process.wait(60)
        port = urlsplit(self.source).port or 0
        wait_until(lambda: port_is_free(port), "the port to be free")
        assert self.server.ensure_running().port == port


@contextmanager
def new_mysql_world() -> Iterator[MysqlWorld]:
    """Start everything, and end it with the block."""
    folder = Path(tempfile.mkdtemp(prefix="export-pipelines-faults-"))
    folder.chmod(0o711)  # root runs the server as another user, who must get in
    server = Server(folder / "server", fsync=False, die_with_parent=True)
    server.folder.mkdir(mode=0o711)
    try:
        address, password = server.ensure_running(), secrets.token_hex(8)
        for statement in _ACCOUNTS:
            run_mysql(address.url(""), statement, {"password": password})

        def url(account: str) -> str:
            return f"mysql://{account}:{password}@127.0.0.1:{address.port}/faults"

        with postgres_server() as postgres, new_database(postgres) as catalog:
            migrate(catalog)
            yield MysqlWorld(folder, server, url(PROGRAM), url(WRITER), url(ADMIN), catalog)
    finally:
        server.stop()
        for made in [folder, *binaries.data_folders(server.folder)]:
            binaries.remove(made)


@contextmanager
def mysql_line(url: str) -> Iterator[Line]:
    """A line to that database until the block is left."""
    parts = urlsplit(url)
    account = parts.netloc.rpartition("@")[0]

    def through(port: int) -> str:
        return urlunsplit(parts._replace(netloc=f"{account}@127.0.0.1:{port}"))

    with line_to(parts.hostname or "", parts.port or 0, through) as line:
        yield line


def end_mysql_sessions(admin: str, account: str = PROGRAM, what: str = "CONNECTION") -> int:
    """KILL the sessions (or only the queries) of an account; how many there were."""
    killed = 0
    for (session,) in run_mysql(admin, "SELECT id FROM information_schema.processlist WHERE user = %s", (account,)):
        with suppress(pymysql.err.OperationalError):  # it has ended by itself
            run_mysql(admin, f"KILL {what} {session}")
            killed += 1
    return killed


@contextmanager
def mysql_rival(url: str) -> Iterator[Any]:
    """A cursor of another session's transaction, which the block ends by a rollback."""
    with closing(mysql_connection(url, autocommit=False)) as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 3, SESSION lock_wait_timeout = 1")
        yield cursor
