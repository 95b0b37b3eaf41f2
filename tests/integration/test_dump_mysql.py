"""Dumps of tables in MariaDB, and tables of reports there."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.dump import dump_window
from export_pipelines.steps.dump_plan import DumpRequest, plan_dump
from export_pipelines.steps.export import export_partition
from tests.support.mariadb import run_mysql
from tests.support.tables import DAY, Kit

pytestmark = pytest.mark.debian

REPORT = """CREATE TABLE report (file_name text, file_path varchar(500), dump_type text, file_size bigint,
    row_count bigint, range_start datetime, range_end datetime, created_at datetime NOT NULL)"""


@contextmanager
def in_mariadb(kit: Kit, url: str) -> Iterator[StepContext]:
    """The kit's table, in MariaDB."""
    with kit.opened() as ctx:
        table = ctx.table.model_copy(update={"engine": "mysql"})
        yield replace(ctx, source=MysqlSource(url), table=table)


@pytest.fixture
def events(kit: Kit, mysql_database: str) -> Kit:
    """A table of 48 rows, one an hour on the first two days of 2025, local to Tallinn."""
    run_mysql(mysql_database, "CREATE TABLE t (id int PRIMARY KEY, at datetime NOT NULL, note text) CHARSET utf8mb4")
    rows = ", ".join(f"({n}, '2025-01-{1 + n // 24:02d} {n % 24:02d}:00:00', 'õ \"{n}')" for n in range(48))
    run_mysql(mysql_database, f"INSERT INTO t VALUES {rows}")
    run_mysql(mysql_database, REPORT)
    kit.spec.update(
        table="t",
        time_column="at",
        partitions={"every": "day", "start": "2025-01-01", "timezone": "Europe/Tallinn"},
        dump={"report": {"table": "report"}},
    )
    kit.window = DAY
    return kit


def test_a_range_of_hours_is_dumped_in_pages_and_each_is_entered(events: Kit, mysql_database: str) -> None:
    with in_mariadb(events, mysql_database) as ctx:
        request = DumpRequest("2025-01-01 08:00", "2025-01-01 18:00", page_rows=4)
        plan = plan_dump(ctx.table, request, datetime.now(UTC))
        (record,) = [dump_window(ctx, batch.window, plan.output) for batch in plan.batches]
    assert [page.rows for page in record.pages] == [4, 4, 2]
    found = []
    for file in record.files:
        text = gzip.decompress((events.folder / "exports" / file.key).read_bytes()).decode()
        found += list(csv.reader(text.splitlines()))[1:]
    assert [row[0] for row in found] == [str(n) for n in range(8, 18)]
    assert found[0] == ["8", "2025-01-01 08:00:00", 'õ "8']
    bounds = (datetime(2025, 1, 1, 8), datetime(2025, 1, 1, 18))
    entries = run_mysql(
        mysql_database, "SELECT row_count, file_size, range_start, range_end FROM report ORDER BY file_path"
    )
    assert [tuple(each) for each in entries] == [
        (rows, file.size, *bounds) for rows, file in zip((4, 4, 2), record.files, strict=True)
    ]


def test_an_export_is_entered_once(events: Kit, mysql_database: str) -> None:
    with in_mariadb(events, mysql_database) as ctx:
        for _ in range(2):
            export_partition(ctx, DAY)
    assert [tuple(each) for each in run_mysql(mysql_database, "SELECT row_count FROM report")] == [(24,)]


def test_a_table_in_postgresql_may_be_entered_in_mariadb(events: Kit, mysql_database: str) -> None:
    events.sql(
        "CREATE TABLE t (id int PRIMARY KEY, at timestamptz NOT NULL)",
        "INSERT INTO t VALUES (1, '2025-01-01 12:00+00')",
    )
    with events.opened() as ctx:
        export_partition(replace(ctx, reports=MysqlSource(mysql_database)), DAY)
    assert [tuple(each) for each in run_mysql(mysql_database, "SELECT row_count, range_start FROM report")] == [
        (1, datetime(2025, 1, 1, 2))
    ]
