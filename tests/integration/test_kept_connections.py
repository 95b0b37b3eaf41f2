"""Connections that a source keeps from one session to the next."""

from __future__ import annotations

import pytest

from export_pipelines.errors import SourceError
from export_pipelines.sources.postgres import PostgresSource
from tests.support.servers import run_sql

_PID = "SELECT pg_backend_pid()"


def pid_of_a_session(source: PostgresSource) -> int:
    with source.session() as session:
        return int(session.one(_PID)[0])


def test_a_session_that_ended_well_leaves_its_connection_to_the_next(database: str) -> None:
    source = PostgresSource(database)
    assert pid_of_a_session(source) == pid_of_a_session(source)


def test_sessions_at_the_same_time_have_connections_of_their_own(database: str) -> None:
    source = PostgresSource(database)
    with source.session() as first, source.session() as second:
        assert first.one(_PID) != second.one(_PID)


def test_nothing_of_a_session_is_left_in_the_next(database: str) -> None:
    source = PostgresSource(database)
    with source.session(read_only=False) as session:
        session.execute("SELECT set_config('DateStyle', 'German', false), pg_advisory_lock(42)")
        session.execute("CREATE TEMPORARY TABLE left_behind ()")
        session.begin()
        session.execute("CREATE TABLE not_committed ()")
    with source.session(read_only=False) as session:
        assert session.one("SHOW DateStyle") == ("ISO, MDY",)
        assert session.one("SELECT to_regclass('left_behind'), to_regclass('not_committed')") == (None, None)
        assert session.one("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == (0,)


def test_a_session_that_failed_closes_its_connection(database: str) -> None:
    source = PostgresSource(database)
    with pytest.raises(SourceError, match="division by zero"), source.session() as session:
        failed = session.one(_PID)[0]
        session.execute("SELECT 1 / 0")
    assert pid_of_a_session(source) != failed


def test_a_kept_connection_that_was_cut_is_replaced(database: str, second_database: str) -> None:
    source = PostgresSource(database)
    before = pid_of_a_session(source)
    run_sql(second_database, "SELECT pg_terminate_backend(%s, 5000)", [before])
    assert pid_of_a_session(source) != before


def test_a_connection_lost_after_the_work_is_no_error(database: str, second_database: str) -> None:
    source = PostgresSource(database)
    with source.session() as session:
        session.begin()
        lost = session.one(_PID)[0]
        run_sql(second_database, "SELECT pg_terminate_backend(%s, 5000)", [lost])
    assert pid_of_a_session(source) != lost
