"""A MariaDB server of the project's own, from the system's programs: for `make demo-mysql` and the tests.

It listens on 127.0.0.1 only and asks for a random password, which it is given anew at each start, before it takes
connections. Its socket lies in the data folder, which is closed to others. Root runs it as `mysql` or `nobody`.

    <folder>/server.json   port, user, password (mode 0600)
    <folder>/data          the data; elsewhere if the server's user could not reach it (see `binaries`)
    <folder>/tmp           its temporary tables, beside the data
    <folder>/server.log
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql

from export_pipelines.errors import SourceError
from export_pipelines.local import binaries
from export_pipelines.local.children import free_port, port_is_free, spawn, stop
from export_pipelines.local.state import command_of, locked, tail, wait_until, write_private

USER = "root"
START_SECONDS = 60.0

# Where Debian and Homebrew keep them; neither folder need be on the PATH.
_FOLDERS = ("/usr/sbin", "/usr/bin", "/opt/homebrew/opt/mariadb/bin", "/usr/local/opt/mariadb/bin")
# A commit is handed to the system at once: it survives a kill of the server, though not a crash of the machine.
_NO_FSYNC = ("--innodb-flush-log-at-trx-commit=2", "--innodb-flush-method=nosync", "--skip-innodb-doublewrite")
_ACCOUNTS = """\
CREATE OR REPLACE USER '{user}'@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL PRIVILEGES ON *.* TO '{user}'@'127.0.0.1' WITH GRANT OPTION;
CREATE OR REPLACE USER '{user}'@'localhost' IDENTIFIED BY '{password}';
GRANT ALL PRIVILEGES ON *.* TO '{user}'@'localhost' WITH GRANT OPTION;
"""


DEMO_DATABASE = "health"
DEMO_URL = "HEALTH_DATABASE_URL"
"""Variable that resources/health reads."""


@dataclass(frozen=True)
class Address:
    """How to reach a server on 127.0.0.1."""

    port: int
    password: str

    def url(self, database: str) -> str:
        return f"mysql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"


@dataclass(frozen=True)
class Programs:
    """The server, the program that makes a data folder, and the (user, group) to run both as, None for our own."""

    server: Path
    installer: Path
    user: tuple[int, int] | None


@contextmanager
def local_mariadb(state: Path, *, databases: Sequence[str] = ()) -> Iterator[Address]:
    """Use the project's server while in the block, starting it if need be; the last user's exit stops it.

    Crash: killed users leave the server running; the next user takes it over.

    Raises:
        SourceError: it is not installed, or cannot be started; the end of its log is in the message.
    """
    server = Server(state / "mariadb")
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


def programs() -> Programs:
    """Find MariaDB's programs. Raises SourceError if they are not installed."""
    server = _found("mariadbd", "mysqld")
    # MySQL has a mysqld, too, but nothing of the second name.
    installer = _found("mariadb-install-db", "mysql_install_db")
    if server is None or installer is None:
        raise SourceError(
            "MariaDB's server is not installed",
            hint="install it: scripts/debian-packages.sh on Debian or Ubuntu, `brew install mariadb` on a Mac",
        )
    return Programs(server, installer, _account())


class Server:
    """One server with its data in one folder. Not locked: see `local_mariadb` for sharing it.

    Args:
        folder: where its state is; it exists.
        fsync: False makes it fast and loses data on a crash of the machine: for tests.
        die_with_parent: on Linux the server ends with the thread that starts it, even by SIGKILL.
    """

    def __init__(self, folder: Path, *, fsync: bool = True, die_with_parent: bool = False) -> None:
        self.folder = folder
        self.fsync = fsync
        self.die_with_parent = die_with_parent
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The data folder: below `folder`, unless root's server could not get in there."""
        folder, outside = self.folder.resolve(), binaries.data_folders(self.folder)[0] / "data"
        within = os.geteuid() != 0 or (binaries.reachable(folder) and not outside.exists())
        return folder / "data" if within else outside

    def ensure_running(self, databases: Sequence[str] = ()) -> Address:
        """Find the server alive or start it (making its data the first time), and make the databases it lacks.

        Crash: a server that was killed recovers what it had committed.

        Raises:
            SourceError: it is not installed, or does not start.
        """
        found, address = programs(), self._read_address()
        if not (self.data / "mysql").exists():
            self._initialise(found)
        if address is None or not _answers(address, self.data):
            address = self._start(found, address)
        with closing(_connect(address)) as connection, connection.cursor() as cursor:
            for name in databases:
                cursor.execute(f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4")
        return address

    def stop(self) -> None:
        """Stop it (sessions are ended, data is kept); nothing happens if it does not run."""
        if not self.folder.exists():
            return
        data = self.data
        pid = _server_on(data)
        if pid is None:
            return
        for kind, seconds in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 5.0)):
            with suppress(ProcessLookupError):
                os.kill(pid, kind)
            if wait_until(lambda: self._reaped() and _server_on(data) is None, seconds):
                return
        raise SourceError(f"the local MariaDB (process {pid}) does not end", hint=f"see {self.log}")

    def _reaped(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _initialise(self, found: Programs) -> None:
        """Make the data beside its place and move it there whole, so that a killed installer leaves nothing half."""
        new = _own_folder(self.data.with_name("data.new"), found.user)
        command: list[str | Path] = [
            found.installer, "--no-defaults", f"--datadir={new}", "--skip-test-db", "--skip-name-resolve",
            "--auth-root-authentication-method=socket", f"--tmpdir={new}",
        ]  # fmt: skip
        code = spawn(command, log=self.log, user=found.user, env=_environment(), cwd=new).wait(120)
        if code != 0:
            raise SourceError(
                f"{found.installer.name} failed with code {code}:\n{tail(self.log)}", hint=f"see {self.log}"
            )
        binaries.remove(self.data)
        new.rename(self.data)

    def _start(self, found: Programs, address: Address | None) -> Address:
        """Start it, at another port if its own is taken, again if an earlier one is still dying."""
        if pid := _server_on(self.data):
            if address and wait_until(lambda: _answers(address, self.data), START_SECONDS):
                return address
            raise SourceError(f"MariaDB runs as process {pid} and does not answer", hint=f"see {self.log}")
        _pid_file(self.data).unlink(missing_ok=True)
        port = address.port if address else free_port()
        for attempt in range(5):
            new = Address(port if port_is_free(port) and not attempt else free_port(), secrets.token_urlsafe(24))
            write_private(self.folder / "server.json", {"port": new.port, "user": USER, "password": new.password})
            self._process = self._launch(found, new)
            if self._wait_until_ready(new):
                return new
            stop(self._process, grace_seconds=2)
            time.sleep(attempt / 2)
        raise SourceError(f"MariaDB did not start:\n{tail(self.log)}", hint=f"see {self.log}")

    def _launch(self, found: Programs, address: Address) -> subprocess.Popen[bytes]:
        data = self.data
        # A server that starts removes what others have in a common one.
        scratch = _own_folder(data.with_name("tmp"), found.user)
        command: list[str | Path] = [
            # The socket's path is relative to the data: a whole one could be too long.
            found.server, "--no-defaults", f"--datadir={data}", "--socket=server.sock", f"--pid-file={_pid_file(data)}",
            f"--tmpdir={scratch}", f"--port={address.port}", "--bind-address=127.0.0.1", "--skip-name-resolve",
            "--skip-log-bin",
            f"--init-file={self._accounts(found, address)}", "--default-time-zone=+00:00",
            "--character-set-server=utf8mb4", "--innodb-buffer-pool-size=128M", "--max-allowed-packet=64M",
            *(() if self.fsync else _NO_FSYNC),
        ]  # fmt: skip
        return spawn(
            command,
            log=self.log,
            user=found.user,
            die_with_parent=signal.SIGTERM if self.die_with_parent else 0,
            env=_environment(),
            cwd=data,
        )

    def _accounts(self, found: Programs, address: Address) -> Path:
        """A file of statements which the server runs before it takes connections: none gets in without the password."""
        path = self.data.with_name("accounts.sql")
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_ACCOUNTS.format(user=USER, password=address.password))
        if found.user:
            os.chown(path, *found.user)
        return path

    def _wait_until_ready(self, address: Address) -> bool:
        wait_until(lambda: _answers(address, self.data) or self._ended(), START_SECONDS)
        return not self._ended() and _answers(address, self.data)

    def _read_address(self) -> Address | None:
        try:
            found = json.loads((self.folder / "server.json").read_text())
            return Address(int(found["port"]), str(found["password"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _found(*names: str) -> Path | None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_FOLDERS])
    return next((Path(place) for name in names if (place := shutil.which(name, path=path))), None)


def _account() -> tuple[int, int] | None:
    """Whom root runs the server as: MariaDB's own user, if the system has it."""
    if os.geteuid() != 0:
        return None
    accounts = {each.pw_name: each for each in pwd.getpwall()}
    account = accounts.get("mysql") or accounts["nobody"]
    return account.pw_uid, account.pw_gid


def _own_folder(path: Path, user: tuple[int, int] | None) -> Path:
    """An empty folder, owned by the server's user and closed to others; the folders above it are made."""
    binaries.remove(path)
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    path.mkdir(mode=0o700)
    if user:
        os.chown(path, *user)
    return path


def _environment() -> dict[str, str]:
    return {"PATH": os.pathsep.join([os.defpath, *_FOLDERS]), "LC_ALL": "C", "TZ": "UTC"}


def _connect(address: Address) -> Any:
    return pymysql.connect(
        host="127.0.0.1", port=address.port, user=USER, password=address.password, connect_timeout=5, autocommit=True
    )


def _answers(address: Address, data: Path) -> bool:
    """Whether a server takes our password at that port and serves this very data."""
    try:
        with closing(_connect(address)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT @@datadir")
            return Path(cursor.fetchone()[0]).resolve() == data.resolve()
    except pymysql.MySQLError:
        return False


def _pid_file(data: Path) -> Path:
    return data / "server.pid"


def _server_on(data: Path) -> int | None:
    """Process id of the server that runs on this data, None if its pid file is missing or stale."""
    try:
        pid = int(_pid_file(data).read_text())
    except (OSError, ValueError):
        return None
    # Process ids are used again after a crash: only a server of this very data counts.
    return pid if f"--datadir={data} " in command_of(pid) else None
