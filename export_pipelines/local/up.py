"""Everything of a project in one command: database, code servers, daemon and web UI, until Ctrl-C."""

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
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

import psycopg2

from export_pipelines.errors import ExportPipelinesError, RequestError, SourceError
from export_pipelines.local.children import group_commands, port_is_free, spawn
from export_pipelines.local.project import running
from export_pipelines.settings import Settings

START_SECONDS = 180.0
STOP_SECONDS = 8.0
# Any number, the same for ever: who holds this advisory lock of Dagster's storage runs its daemon.
_DAEMON_LOCK = 7310_2013


class UpError(ExportPipelinesError):
    """Dagster did not start, or ended by itself."""


class _Stop(BaseException):
    """A signal asked us to end."""


def up(settings: Settings, *, port: int = 3000, echo: Callable[[str], object] = print) -> None:
    """Run everything until SIGINT, SIGTERM or SIGHUP; on return nothing that it started is left.

    `echo` is given one line when the UI answers, and one when all has ended.

    Crash: killed by SIGKILL, Dagster ends with it (Linux); the embedded server stays and is taken over by the next.

    Raises:
        RequestError: the port is taken, or this project or its storage is already served by another `up`.
        UpError: Dagster did not start or ended by itself; the end of its log is in the message.
    """
    try:
        with ExitStack() as stack:
            stack.enter_context(_signals_stop())
            lock = stack.enter_context(_alone(settings))
            if not port_is_free(port):
                raise RequestError(
                    f"port {port} of 127.0.0.1 is taken by another program",
                    hint=f"choose another one: export-pipelines up --port {port + 1}",
                )
            settings = stack.enter_context(running(settings))
            stack.enter_context(_only_daemon(settings))
            process = stack.enter_context(_dagster(settings, port))
            _write(lock, f"{os.getpid()} {process.pid}")
            _wait_until_ready(process, port, _log(settings))
            echo(f"Dagster is at http://127.0.0.1:{port} - Ctrl-C stops everything (log: {_log(settings)})")
            process.wait()
            raise UpError(f"Dagster ended by itself:\n{_tail(_log(settings))}", hint=f"see {_log(settings)}")
    except _Stop:
        echo("stopped")


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
            if any("dagster" in command for command in group_commands(int(group))):
                _end_group(int(group))
        _write(lock, str(os.getpid()))
        yield lock
        _write(lock, "")


def _read(lock: TextIO) -> list[str]:
    """Process id of the `up` and process group of its Dagster, as far as they are known."""
    lock.seek(0)
    return lock.read().split()


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
def _dagster(settings: Settings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dagster dev` in a process group of its own and end all of the group."""
    command: list[str | Path] = [
        sys.executable, "-W", "ignore", "-m", "dagster", "dev", "--workspace", settings.root / "workspace.yaml",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    log = _log(settings)
    log.write_bytes(b"")
    process = spawn(command, log=log, die_with_parent=signal.SIGTERM, cwd=settings.root)
    try:
        yield process
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


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(port):
            return
        time.sleep(0.2)
    what = "ended" if process.poll() is not None else f"did not answer within {START_SECONDS:.0f} s"
    raise UpError(f"Dagster {what} while starting:\n{_tail(log)}", hint=f"see {log}")


def _answers(port: int) -> bool:
    # No proxy of the environment may stand between us and ourselves.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/server_info", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _log(settings: Settings) -> Path:
    return settings.state / "up.log"


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:].strip()
