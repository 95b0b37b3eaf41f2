"""Everything of a project in one command: database, code servers, daemon, web UI, API and worker, until Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

import psycopg2

from export_pipelines.errors import ExportPipelinesError, RequestError, SourceError, SpecError
from export_pipelines.local.children import group_commands, port_is_free, spawn
from export_pipelines.local.project import running, service_of
from export_pipelines.settings import Settings
from export_pipelines.specs.documents import load_documents

START_SECONDS = 180.0
STOP_SECONDS = 8.0
# Any number, the same for ever: who holds this advisory lock of Dagster's storage runs its daemon.
_DAEMON_LOCK = 7310_2013


class UpError(ExportPipelinesError):
    """A part did not start, or ended by itself."""


class _Stop(BaseException):
    """A signal asked us to end."""


@dataclass(frozen=True)
class _Part:
    """One of the programs."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def error(self, what: str) -> UpError:
        return UpError(f"{self.name} {what}:\n{_tail(self.log)}", hint=f"see {self.log}")


def up(
    settings: Settings, *, port: int = 3000, api_port: int | None = None, echo: Callable[[str], object] = print
) -> None:
    """Run everything until SIGINT, SIGTERM or SIGHUP; on return nothing that it started is left.

    `echo` is given one line when the UI answers, one when exports on demand are served (`api_port`, None for no API;
    a project without a catalog and a store for them in resources/ has none), and one when all has ended.

    Crash: killed by SIGKILL, its programs end with it (Linux); the embedded server stays and is taken over by the next.

    Raises:
        RequestError: a port is taken, or this project or its storage is already served by another `up`.
        UpError: a part did not start or ended by itself; the end of its log is in the message.
    """
    try:
        with ExitStack() as stack:
            stack.enter_context(_signals_stop())
            lock = stack.enter_context(_alone(settings))
            _refuse_taken(port, "--port")
            served = can_serve(settings.root)
            if served and api_port is not None:
                _refuse_taken(api_port, "--api-port")
            settings = stack.enter_context(running(settings))
            stack.enter_context(_told_where(port, api_port if served else None))
            stack.enter_context(_only_daemon(settings))
            parts = [stack.enter_context(_dagster(settings, port))]
            _note(lock, parts)
            if served and api_port is not None:
                parts.append(stack.enter_context(_command(settings, "api", "the API", "--port", str(api_port))))
                _note(lock, parts)
            _wait_until_ready(parts[0], lambda: _answers(port, "/server_info"))
            echo(f"Dagster is at http://127.0.0.1:{port} - Ctrl-C stops everything (log: {_log(settings)})")
            if served:
                # Not before: two that find Dagster's storage empty would both make its tables.
                worker = stack.enter_context(_command(settings, "worker", "the worker"))
                parts.append(worker)
                _note(lock, parts)
                if api_port is not None:
                    _wait_until_ready(parts[1], lambda: _answers(api_port, "/health/live"))
                _wait_until_ready(worker, lambda: b" ready: " in worker.log.read_bytes())
                echo(_served_line(settings, api_port))
            _watch(parts)
    except _Stop:
        echo("stopped")


def can_serve(root: Path) -> bool:
    """Whether resources/ has what exports on demand need: the catalog, and the store for their files."""
    store, keys = service_of(root).store, set()
    for file in sorted((root / "resources").rglob("defs.yaml")):
        with suppress(SpecError):
            for document in load_documents(file):
                catalog = document.type == "export_pipelines.CatalogDatabase"
                keys.add(document.attributes.get("resource_key", "catalog" if catalog else ""))
    return {store, "catalog"} <= keys


@contextmanager
def _told_where(port: int, api_port: int | None) -> Iterator[None]:
    """Let our programs know where people reach them, unless the environment or `.env` says it: links begin with it."""
    where = {"DAGSTER_URL": port, "PUBLIC_URL": api_port}
    told = {name: at for name, at in where.items() if at is not None and not os.environ.get(name)}
    os.environ.update({name: f"http://127.0.0.1:{at}" for name, at in told.items()})
    try:
        yield
    finally:
        for name in told:
            os.environ.pop(name, None)


def _refuse_taken(port: int, option: str) -> None:
    if not port_is_free(port):
        raise RequestError(
            f"port {port} of 127.0.0.1 is taken by another program",
            hint=f"choose another one: export-pipelines up {option} {port + 1}",
        )


def _served_line(settings: Settings, api_port: int | None) -> str:
    if api_port is None:
        return "the worker answers requests; there is no API"
    token = settings.state / "keys" / "local.token"
    text = token.read_text().strip() if token.exists() else ""
    return f"Ask for data at http://127.0.0.1:{api_port}" + (
        f" with the token {text} (also in {token})" if text else ""
    )


def _watch(parts: list[_Part]) -> None:
    """Wait until one ends."""
    while True:
        for part in parts:
            if part.process.poll() is not None:
                raise part.error("ended by itself")
        time.sleep(0.5)


@contextmanager
def _signals_stop() -> Iterator[None]:
    """Turn the first signal into an exception; the impatient ones after it change nothing."""
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for kind in kinds:
            signal.signal(kind, signal.SIG_IGN)
        raise _Stop

    before = {kind: signal.signal(kind, stop) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@contextmanager
def _alone(settings: Settings) -> Iterator[TextIO]:
    """Hold the project: two daemons would launch every run twice. What a killed `up` left running is ended."""
    settings.state.mkdir(parents=True, exist_ok=True)
    with (settings.state / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = [*_read(lock), "unknown"][0]
            raise RequestError(
                f"this project is up already (process {holder})", hint="stop it first, with Ctrl-C in its terminal"
            ) from None
        for group in _read(lock)[1:]:
            if any("dagster" in command or "export_pipelines" in command for command in group_commands(int(group))):
                _end_group(int(group))
        _write(lock, str(os.getpid()))
        yield lock
        _write(lock, "")


def _read(lock: TextIO) -> list[str]:
    """Process id of the `up`, and process groups of its Dagster, API and worker, as far as they are known."""
    lock.seek(0)
    return lock.read().split()


def _note(lock: TextIO, parts: list[_Part]) -> None:
    _write(lock, " ".join(map(str, [os.getpid(), *(each.process.pid for each in parts)])))


def _write(lock: TextIO, text: str) -> None:
    lock.truncate(0)
    lock.write(text)
    lock.flush()


@contextmanager
def _only_daemon(settings: Settings) -> Iterator[None]:
    """Hold Dagster's storage, which another project or machine may share."""
    assert settings.dagster_pg_url
    try:
        connection = psycopg2.connect(settings.dagster_pg_url)
    except psycopg2.OperationalError as error:
        raise SourceError(
            f"Dagster's storage cannot be reached: {str(error).strip()}", hint="check DAGSTER_PG_URL", transient=True
        ) from None
    with closing(connection):
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (_DAEMON_LOCK,))
            if not cursor.fetchone()[0]:
                raise RequestError(
                    "another `up` runs a daemon on the database of DAGSTER_PG_URL: two would launch every run twice",
                    hint="stop that one, or give this project a database of its own",
                )
        yield


@contextmanager
def _dagster(settings: Settings, port: int) -> Iterator[_Part]:
    """Run `dagster dev`."""
    command: list[str | Path] = [
        sys.executable, "-W", "ignore", "-m", "dagster", "dev", "--workspace", settings.root / "workspace.yaml",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with _running(settings, "Dagster", command, _log(settings)) as part:
        yield part


@contextmanager
def _command(settings: Settings, command: str, name: str, *arguments: str) -> Iterator[_Part]:
    """Run another command of ours."""
    # What is printed is read as it comes.
    ours: list[str | Path] = [sys.executable, "-u", "-W", "ignore", "-m", "export_pipelines.cli", command, *arguments]
    with _running(settings, name, ours, settings.state / f"{command}.log") as part:
        yield part


@contextmanager
def _running(settings: Settings, name: str, command: list[str | Path], log: Path) -> Iterator[_Part]:
    """Run a program in a process group of its own, and end all of the group."""
    log.unlink(missing_ok=True)
    # The API tells its token there.
    log.touch(mode=0o600)
    process = spawn(command, log=log, die_with_parent=signal.SIGTERM, cwd=settings.root)
    try:
        yield _Part(name, process, log)
    finally:
        _end_group(process.pid)
        process.wait()


def _end_group(group: int) -> None:
    """Ask every process of the group to end, so that runs under way are ended as cancelled; kill what stays."""
    for kind, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 2.0)):
        try:
            os.killpg(group, kind)
        except (ProcessLookupError, PermissionError):
            return
        deadline = time.monotonic() + seconds
        while group_commands(group) and time.monotonic() < deadline:
            time.sleep(0.1)


def _wait_until_ready(part: _Part, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while part.process.poll() is None and time.monotonic() < deadline:
        if ready():
            return
        time.sleep(0.2)
    ended = part.process.poll() is not None
    raise part.error("ended while starting" if ended else f"did not answer within {START_SECONDS:.0f} s while starting")


def _answers(port: int, path: str) -> bool:
    # No proxy of the environment may stand between us and ourselves.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _log(settings: Settings) -> Path:
    return settings.state / "up.log"


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:].strip()
