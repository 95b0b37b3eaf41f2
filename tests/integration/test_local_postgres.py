"""The embedded server: shared, found again, stopped by its last user, closed to strangers."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from export_pipelines.errors import SourceError
from export_pipelines.local import binaries
from export_pipelines.local.children import port_is_free
from export_pipelines.local.postgres import Server, embedded, known_url
from tests.support.servers import run_sql

HOLD = """
import sys, time
from pathlib import Path
from export_pipelines.local.postgres import embedded
with embedded(Path(sys.argv[1]), databases=("source",), fsync=False) as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def state() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="export-pipelines-"))
    folder.chmod(0o711)
    yield folder
    Server(folder / "postgres").stop()
    for made in [folder, *binaries.data_folders(folder / "postgres")]:
        binaries.remove(made)


def holder(state: Path) -> subprocess.Popen[str]:
    """Another process that uses the server until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip().isdigit()
    return process


def release(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=90)
    assert process.returncode == 0


def test_server_keeps_its_data_and_stops_with_its_last_user(state: Path) -> None:
    with embedded(state, databases=("source",), fsync=False) as server:
        run_sql(server.url("source"), "CREATE TABLE t AS SELECT 1 AS n")
    assert port_is_free(server.port)
    with embedded(state, databases=("source",), fsync=False) as server:
        assert run_sql(server.url("source"), "SELECT n FROM t") == [(1,)]


def test_server_is_shared_by_processes_until_the_last_one_leaves(state: Path) -> None:
    with embedded(state, databases=("source",), fsync=False) as server:
        other = holder(state)
    assert run_sql(server.url("source"), "SELECT 1") == [(1,)]
    release(other)
    assert port_is_free(server.port)


def test_two_processes_that_start_at_once_get_the_same_server(state: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(state)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ports = {process.stdout.readline() for process in both if process.stdout}
    for process in both:
        release(process)
    assert len(ports) == 1


def test_server_left_by_a_killed_user_is_used_again_and_then_stopped(state: Path) -> None:
    killed = holder(state)
    killed.kill()
    killed.communicate()
    left = known_url(state, "source")
    assert left is not None
    started = run_sql(left, "SELECT pg_postmaster_start_time()")
    with embedded(state, fsync=False) as server:
        assert run_sql(server.url("source"), "SELECT pg_postmaster_start_time()") == started
    assert port_is_free(server.port)


def test_server_that_was_killed_itself_is_started_again(state: Path) -> None:
    with embedded(state, databases=("source",), fsync=True) as server:
        run_sql(server.url("source"), "CREATE TABLE t AS SELECT 1 AS n")
        data = run_sql(server.url("source"), "SHOW data_directory")[0][0]
        os.kill(int((Path(data) / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        with embedded(state, fsync=True) as again:
            assert run_sql(again.url("source"), "SELECT n FROM t") == [(1,)]


def test_stale_pid_file_with_the_pid_of_a_stranger_does_not_hinder_the_start(state: Path) -> None:
    with embedded(state, fsync=False) as server:
        data = Path(run_sql(server.url("postgres"), "SHOW data_directory")[0][0])
        content = (data / "postmaster.pid").read_text().split("\n")
    (data / "postmaster.pid").write_text("\n".join([str(os.getpid()), *content[1:]]))
    with embedded(state, fsync=False) as server:
        assert run_sql(server.url("postgres"), "SELECT 1") == [(1,)]


def test_taken_port_is_replaced_by_another(state: Path) -> None:
    with embedded(state, databases=("source",), fsync=False) as first:
        pass
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(first.port)]
    squatter = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while port_is_free(first.port) and time.monotonic() < deadline:
            time.sleep(0.05)
        with embedded(state, fsync=False) as second:
            assert second.port != first.port
            assert known_url(state, "source") == second.url("source")
    finally:
        squatter.kill()
        squatter.wait()


def test_server_refuses_a_wrong_password_and_keeps_its_own_secret(state: Path) -> None:
    with (
        embedded(state, databases=("source",), fsync=False) as server,
        pytest.raises(psycopg2.OperationalError, match="password authentication failed"),
    ):
        psycopg2.connect(server.url("source").replace(server.password, "guess"))
    assert stat.S_IMODE((state / "postgres" / "server.json").stat().st_mode) == 0o600


def test_data_of_another_major_version_is_refused_and_left_alone(state: Path) -> None:
    with embedded(state, fsync=False) as server:
        data = Path(run_sql(server.url("postgres"), "SHOW data_directory")[0][0])
    (data / "PG_VERSION").write_text("9\n")
    with pytest.raises(SourceError, match="made by PostgreSQL 9"), embedded(state, fsync=False):
        pass
    assert (data / "base").is_dir()


def test_server_starts_in_a_folder_that_only_its_owner_can_enter(state: Path) -> None:
    closed = state / "closed"
    closed.mkdir(mode=0o700)
    try:
        with embedded(closed, databases=("source",), fsync=False) as server:
            assert run_sql(server.url("source"), "SELECT 1") == [(1,)]
    finally:
        for made in binaries.data_folders(closed / "postgres"):
            binaries.remove(made)


def test_databases_of_tests_are_empty_and_their_own(database: str, second_database: str) -> None:
    run_sql(database, "CREATE TABLE t (n int)")
    assert run_sql(second_database, "SELECT to_regclass('t')") == [(None,)]
