"""The restore drill: every type comes back the same, every difference is found, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.errors import IntegrityError, RequestError, TargetError
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.steps.drill import DrillResult, drill
from tests.integration.test_restore import DAY, NEXT, SPEC, late, make_events
from tests.integration.test_types import DIALECTS, TYPES, VALUES, make_types
from tests.support.servers import run_sql
from tests.support.step_tables import StepTable, new_step_table


@pytest.fixture
def events(tmp_path: Path, database: str, catalog_url: str) -> StepTable:
    """Ten rows on each of two days, archived."""
    make_events(database)
    table = new_step_table(tmp_path, database, catalog_url, SPEC)
    for day in (DAY, NEXT):
        table.into_archive(day)
    return table


def drilled(table: StepTable, partition: str = "", url: str = "", **more: Any) -> DrillResult:
    """Drill a partition of our choice, or a random one."""

    def choose(keys: Sequence[str]) -> str:
        assert partition in keys
        return partition

    chosen = {"choose": choose} if partition else {}
    return drill(table.archived(), PostgresSource(url or table.url), **chosen, **more)


def relations(url: str) -> list[tuple[Any, ...]]:
    return run_sql(url, "SELECT oid, relname FROM pg_class ORDER BY oid")


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS.keys())
def test_every_type_comes_back_byte_for_byte(
    tmp_path: Path, database: str, second_database: str, catalog_url: str, dialect: dict[str, Any]
) -> None:
    make_types(database)
    table = new_step_table(tmp_path, database, catalog_url, {"table": "types", "format": {"csv": dialect}})
    record = table.into_archive()
    run_sql(second_database, TYPES)
    before = relations(second_database)
    result = drilled(table, url=second_database)
    assert (result.rows, result.row_digest, result.same_bytes) == (
        1 + sum(map(len, VALUES.values())),
        record.row_digest,
        True,
    )
    assert result.raw_bytes == record.file.raw_size
    assert relations(second_database) == before


@pytest.mark.parametrize("by_key", [False, True])
def test_each_generation_is_drilled_for_the_records_that_are_taken_of_it(
    tmp_path: Path, database: str, catalog_url: str, by_key: bool
) -> None:
    make_events(database)
    where = "at >= %(window_start)s AND at < %(window_end)s"
    spec = {name: value for name, value in SPEC.items() if not by_key or name not in ("table", "time_column")}
    select, delete = (f"SELECT DISTINCT * FROM events WHERE {where}", f"DELETE FROM events WHERE {where}")
    sql = {"select": select, "delete": delete} if by_key else {}
    table = new_step_table(tmp_path, database, catalog_url, spec, **sql)
    for number in (50, 51):
        table.into_archive(DAY)
        table.cleanup(DAY)
        late(table, number)
    table.into_archive(DAY)
    result = drilled(table, DAY)
    assert (result.files, result.rows, result.same_bytes) == (3, 12, True)


def test_values_that_come_back_otherwise_are_found(
    tmp_path: Path, database: str, second_database: str, catalog_url: str
) -> None:
    run_sql(database, "CREATE TYPE code AS ENUM ('c1', 'c2', 'c3')")
    run_sql(database, "CREATE TABLE t AS SELECT n AS id, ('c' || n)::code AS c FROM generate_series(1, 3) n")
    table = new_step_table(tmp_path, database, catalog_url, {"table": "t"})
    table.into_archive()
    assert drilled(table).rows == 3
    run_sql(second_database, "CREATE DOMAIN code AS char(8)")
    before = relations(second_database)
    with pytest.raises(IntegrityError, match="came back differently"):
        drilled(table, url=second_database)
    assert relations(second_database) == before


def test_a_damaged_file_is_found(events: StepTable) -> None:
    file = events.archived_file(1)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=file.name):
        drilled(events, DAY)
    assert drilled(events, NEXT).rows == 10


def test_types_that_the_database_lacks_are_named(
    tmp_path: Path, database: str, second_database: str, catalog_url: str
) -> None:
    make_types(database)
    table = new_step_table(tmp_path, database, catalog_url, {"table": "types"})
    table.into_archive()
    with pytest.raises(TargetError, match="types that do not exist in the target database"):
        drilled(table, url=second_database)


def test_partitions_without_rows_come_last(events: StepTable) -> None:
    events.into_archive("2025-01-03")
    assert {drilled(events).partition for _ in range(12)} == {DAY, NEXT}
    empty = events.with_definition(name="empty")
    empty.into_archive("2025-01-03")
    assert drilled(empty).rows == 0


def test_no_partition_within_the_budget_is_said(events: StepTable) -> None:
    with pytest.raises(RequestError, match=r"no partition .* the smallest has \d+ bytes") as caught:
        drilled(events, max_bytes=10)
    assert "max_megabytes" in caught.value.hint
    assert drilled(events, max_bytes=10_000).rows == 10
