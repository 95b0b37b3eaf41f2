"""What the fault suite runs in: a PostgreSQL of its own that may be killed, an S3 server, and lines that can be cut."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from export_pipelines.catalog.migrate import migrate
from export_pipelines.local import binaries
from export_pipelines.local.children import port_is_free
from export_pipelines.local.postgres import Server
from tests.support.faulty_proxy import FaultyProxy, faulty_proxy
from tests.support.servers import Seaweed, run_sql, seaweed_server

DISK_FULL = """
CREATE SCHEMA fault;
CREATE TABLE fault.disk_full (chance float);
CREATE FUNCTION fault.maybe_full() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM fault.disk_full WHERE random() < chance) THEN
    RAISE 'could not extend file "base/5/16384": No space left on device' USING ERRCODE = 'disk_full';
  END IF;
END $$;
CREATE FUNCTION fault.maybe_full_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM fault.maybe_full();
  RETURN NEW;
END $$;
"""
"""Makes the server say what it says when its disk is full, while `fault.disk_full` has a row."""


@dataclass
class World:
    """Servers and folders. `source` and `catalog` are databases of one server."""

    folder: Path
    server: Server
    source: str
    catalog: str
    seaweed: Seaweed
    proxy: FaultyProxy

    def crash(self) -> None:
        """Kill all of the server's processes at once, as a crash does, and start it again."""
        self._stop(signal.SIGQUIT)
        self._start()

    def fail_over(self) -> None:
        """Make the server one that was a standby a moment ago: same data, same identifier, another timeline."""
        self._stop(signal.SIGINT)
        data = binaries.installation(self.server.folder).data
        (data / "standby.signal").touch()
        shutil.copymode(data / "PG_VERSION", data / "standby.signal")
        status = (data / "PG_VERSION").stat()
        os.chown(data / "standby.signal", status.st_uid, status.st_gid)
        self._start()
        run_sql(self.source, "SELECT pg_promote(true, 60)")

    def _stop(self, how: int) -> None:
        data = binaries.installation(self.server.folder).data
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(pid, how)
        process = self.server._process
        assert process is not None
        process.wait(60)

    def _start(self) -> None:
        port = int(parse_dsn(self.source)["port"])
        wait_until(lambda: port_is_free(port), "the port to be free")
        wait_until(self._starts, "the server to start")
        assert self.server.ensure_running().port == port

    def _starts(self) -> bool:
        self.server.ensure_running()
        return True


def wait_until(condition: Any, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.02)


@contextmanager
def new_world() -> Iterator[World]:
    """Start everything, and end it with the block."""
    folder = Path(tempfile.mkdtemp(prefix="export-pipelines-faults-"))
    folder.chmod(0o711)  # root runs the server as another user, who must get in
    server = Server(folder / "server", fsync=False, die_with_parent=True)
    server.folder.mkdir(mode=0o711)
    try:
        address = server.ensure_running(("faults", "faults_catalog"))
        source, catalog = address.url("faults"), address.url("faults_catalog")
        for database in ("faults", "faults_catalog"):
            # Without fsync the server also forgets commits that it told of; a killed server must not.
            run_sql(address.url("postgres"), f"ALTER DATABASE {database} SET synchronous_commit = on")
            run_sql(address.url("postgres"), f"ALTER DATABASE {database} SET deadlock_timeout = '50ms'")
        migrate(catalog)
        for url in (source, catalog):
            run_sql(url, DISK_FULL)
        for table in ("export", "cleanup_batch", "chain_head", "cleanup"):
            run_sql(
                catalog,
                f"CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON export_pipelines.{table} FOR EACH ROW "
                "EXECUTE FUNCTION fault.maybe_full_trigger()",
            )
        with seaweed_server(folder / "s3") as seaweed, faulty_proxy(seaweed.endpoint) as proxy:
            yield World(folder, server, source, catalog, seaweed, proxy)
    finally:
        server.stop()
        for made in [folder, *binaries.data_folders(server.folder)]:
            binaries.remove(made)


@dataclass
class Line:
    """A TCP connection to a database that can be cut or held up. `url` leads through it."""

    url: str
    _pairs: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)
    _open: threading.Event = field(default_factory=threading.Event)
    _swallow: bool = False

    def cut(self) -> bool:
        """End all connections now; True if there were any."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        return bool(pairs)

    def lose_the_next_answer(self) -> bool:
        """The server gets what it is sent; what it answers does not come back, and the connection ends."""
        self._swallow = bool(self._pairs)
        return self._swallow

    def hold(self) -> None:
        """Let nothing through, either way."""
        self._open.clear()

    def release(self) -> None:
        """Let everything through again."""
        self._open.set()

    def _pump(self, source: socket.socket, sink: socket.socket, pair: Any, *, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._open.wait(30)
                if answers and self._swallow:
                    self._swallow = False
                    break
                sink.sendall(data)
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def database_line(url: str) -> Iterator[Line]:
    """A line to that database until the block is left."""
    target = parse_dsn(url)

    def through(port: int) -> str:
        own = {**target, "host": "127.0.0.1", "port": str(port)}
        return make_dsn(**own, sslmode="disable", gssencmode="disable")

    with line_to(target["host"], int(target["port"]), through) as line:
        yield line


@contextmanager
def line_to(host: str, port: int, through: Callable[[int], str]) -> Iterator[Line]:
    """A line to a server until the block is left; `through` gives the URL by the line's own port."""
    listener = socket.create_server(("127.0.0.1", 0))
    line = Line(through(listener.getsockname()[1]))
    line.release()
    every: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                every.append(client)
                try:
                    server = socket.create_connection((host, port))
                except OSError:
                    client.close()
                    continue
                every.append(server)
                pair = (client, server)
                line._pairs.append(pair)
                threading.Thread(target=line._pump, args=(client, server, pair), kwargs={"answers": False}).start()
                threading.Thread(target=line._pump, args=(server, client, pair), kwargs={"answers": True}).start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield line
    finally:
        line.release()
        line.cut()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        acceptor.join(5)
        for each in (listener, *every):
            each.close()


def end_sessions(url: str) -> int:
    """Terminate the backends of the program under test in that database; how many there were."""
    found = run_sql(
        url,
        "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
        "current_database() AND application_name = 'export_pipelines') AS ended",
    )
    return int(found[0][0])


@contextmanager
def rival(url: str) -> Iterator[Any]:
    """A cursor of another session's transaction, which the block ends by a rollback."""
    with closing(psycopg2.connect(url, application_name="suite")) as connection, connection.cursor() as cursor:
        yield cursor
