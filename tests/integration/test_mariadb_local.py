"""The local MariaDB: it asks for its password, survives being killed, and stops when it is told to."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest

from export_pipelines.errors import SourceError
from export_pipelines.local import binaries, mariadb
from export_pipelines.local.children import port_is_free
from export_pipelines.local.mariadb import Server, local_mariadb
from tests.support.mariadb import mysql_connection, run_mysql

pytestmark = pytest.mark.debian


@pytest.fixture
def state() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="export-pipelines-"))
    folder.chmod(0o711)
    yield folder
    _remove(folder)


def _remove(state: Path) -> None:
    server = Server(state / "mariadb")
    server.stop()
    for made in [state, *binaries.data_folders(server.folder)]:
        binaries.remove(made)


@pytest.fixture
def server(state: Path) -> Server:
    (state / "mariadb").mkdir()
    return Server(state / "mariadb")


def process_of(server: Server) -> int:
    return int((server.data / "server.pid").read_text())


def test_it_keeps_its_data_and_stops_with_its_last_user(state: Path) -> None:
    with local_mariadb(state, databases=["health"]) as address, local_mariadb(state) as same:
        assert same == address
        run_mysql(address.url("health"), "CREATE TABLE t SELECT 1 AS n")
    assert port_is_free(address.port)
    with local_mariadb(state, databases=["health"]) as again:
        assert run_mysql(again.url("health"), "SELECT n FROM t") == [(1,)]


def test_a_second_server_leaves_the_temporary_tables_of_the_first(server: Server, state: Path) -> None:
    address = server.ensure_running()
    (scratch,) = run_mysql(address.url(""), "SELECT @@tmpdir")[0]
    # Named, and owned, as those are that a server which starts takes for its own.
    left = Path(scratch) / "#sql-temptable-1-1-1.MAI"
    left.touch()
    owner = server.data.stat()
    os.chown(left, owner.st_uid, owner.st_gid)
    (state / "second").mkdir()
    second = Server(state / "second")
    try:
        second.ensure_running()
        assert left.exists()
    finally:
        second.stop()
        for made in binaries.data_folders(second.folder):
            binaries.remove(made)


def test_nobody_gets_in_without_the_password(server: Server) -> None:
    address = server.ensure_running()
    for password in ("", "guess"):
        with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
            mysql_connection(address.url("").replace(address.password, password))
    with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
        mysql_connection(address.url("").replace("root", "mysql"))


def test_the_socket_asks_for_the_password_too(server: Server) -> None:
    address = server.ensure_running()
    # Relative, since the path to the data may be longer than that of a socket may be.
    here = Path.cwd()
    os.chdir(server.data)
    try:
        with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
            pymysql.connect(unix_socket="server.sock", user="root", password="")
        pymysql.connect(unix_socket="server.sock", user="root", password=address.password).close()
    finally:
        os.chdir(here)


def test_the_password_is_for_its_owner_alone(server: Server) -> None:
    address = server.ensure_running()
    files = [server.folder / "server.json", server.data.with_name("accounts.sql")]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
    assert address.password not in repr(server) + server.log.read_text()


def test_it_listens_on_this_machine_only(server: Server) -> None:
    address = server.ensure_running()
    assert run_mysql(address.url(""), "SELECT @@bind_address, @@log_bin") == [("127.0.0.1", 0)]


def test_a_server_that_was_killed_is_started_again_with_all_that_was_committed(server: Server) -> None:
    address = server.ensure_running(["d"])
    run_mysql(address.url("d"), "CREATE TABLE t (n int PRIMARY KEY)")
    run_mysql(address.url("d"), "INSERT INTO t VALUES (1), (2)")
    os.kill(process_of(server), signal.SIGKILL)
    again = Server(server.folder).ensure_running()
    assert run_mysql(again.url("d"), "SELECT n FROM t ORDER BY n") == [(1,), (2,)]


def test_a_server_that_runs_is_found_by_another_process(server: Server) -> None:
    address = server.ensure_running()
    process = process_of(server)
    assert Server(server.folder).ensure_running() == address
    assert process_of(server) == process


def test_a_stale_pid_file_with_the_pid_of_a_stranger_does_not_hinder_the_start(server: Server) -> None:
    server.ensure_running()
    server.stop()
    (server.data / "server.pid").write_text(f"{os.getpid()}\n")
    address = server.ensure_running()
    assert run_mysql(address.url(""), "SELECT 1") == [(1,)]


def test_a_lost_password_is_replaced_at_the_next_start(server: Server) -> None:
    run_mysql(server.ensure_running(["d"]).url("d"), "CREATE TABLE t SELECT 1 AS n")
    server.stop()
    (server.folder / "server.json").unlink()
    assert run_mysql(server.ensure_running().url("d"), "SELECT n FROM t") == [(1,)]


def test_what_a_killed_installer_left_is_made_anew(server: Server) -> None:
    (server.data.with_name("data.new") / "mysql").mkdir(parents=True)
    assert run_mysql(server.ensure_running().url(""), "SELECT 1") == [(1,)]


def test_stopping_twice_does_nothing(server: Server) -> None:
    address = server.ensure_running()
    server.stop()
    server.stop()
    assert port_is_free(address.port)


def test_it_starts_in_a_folder_that_only_its_owner_can_enter(state: Path) -> None:
    closed = state / "closed"
    closed.mkdir(mode=0o700)
    try:
        with local_mariadb(closed) as address:
            assert run_mysql(address.url(""), "SELECT 1") == [(1,)]
    finally:
        _remove(closed)


def test_it_starts_in_a_folder_whose_path_is_longer_than_that_of_a_socket_may_be(state: Path) -> None:
    deep = state / ("d" * 120)
    deep.mkdir(mode=0o711)
    try:
        with local_mariadb(deep) as address:
            assert run_mysql(address.url(""), "SELECT 1") == [(1,)]
    finally:
        _remove(deep)


def test_a_server_that_is_not_installed_is_an_error_with_a_hint(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mariadb, "_FOLDERS", ())
    with pytest.raises(SourceError, match="not installed") as caught:
        server.ensure_running()
    assert "scripts/debian-packages.sh" in caught.value.hint
    assert "brew install mariadb" in caught.value.hint


def test_databases_of_tests_are_empty_and_their_own(mysql_database: str) -> None:
    assert run_mysql(mysql_database, "SHOW TABLES") == []
    run_mysql(mysql_database, "CREATE TABLE t (n int)")
