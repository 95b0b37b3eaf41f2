"""Dumps of any range: what is in the files, what becomes of them after a crash, and the table of reports."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from export_pipelines.catalog import Catalog
from export_pipelines.catalog.dumps import DumpRecord
from export_pipelines.errors import ObjectExists, PartitionBusy, RequestError, SourceError
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.dump import Container, parse_interval
from export_pipelines.steps import dump as dump_step
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.dump import dump_window, settle_dumps
from export_pipelines.steps.dump_plan import DumpRequest, Output, plan_dump
from export_pipelines.steps.export import export_partition
from export_pipelines.steps.report import settle_reports
from export_pipelines.steps.sweep import sweep
from export_pipelines.stores.file_writer import FileWriter
from tests.support.dagster_project import Folder, make_events, new_project, query
from tests.support.tables import DAY, Kit, run_each

REPORT = """CREATE TABLE report (file_name text, file_path text, dump_type text, file_size bigint, row_count bigint,
    range_start timestamp, range_end timestamptz, created_at timestamptz NOT NULL)"""


@pytest.fixture
def events(kit: Kit) -> Kit:
    """A table of ten rows an hour on the first two days of 2025."""
    kit.sql(
        "CREATE TABLE t (id bigint PRIMARY KEY, at timestamptz NOT NULL, note text)",
        "INSERT INTO t SELECT h * 10 + n, timestamptz '2025-01-01 00:00+00' + h * interval '1 hour' + n * interval "
        "'1 minute', E'row\\n\"' || n FROM generate_series(0, 47) h, generate_series(0, 9) n ORDER BY 1",
        REPORT,
    )
    kit.spec.update(table="t", time_column="at")
    kit.window = DAY
    return kit


@contextmanager
def opened(kit: Kit, **more: Any) -> Iterator[StepContext]:
    with kit.opened() as context:
        yield replace(context, **more)


def dumped(kit: Kit, start: str, end: str, batch: str = "1 day", **output: Any) -> list[DumpRecord]:
    """All batches of a range."""
    with opened(kit) as ctx:
        plan = plan_dump(ctx.table, DumpRequest(start, end, parse_interval(batch), **output), datetime.now(UTC))
        return [dump_window(ctx, batch.window, plan.output) for batch in plan.batches]


def ids(data: bytes) -> list[int]:
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert rows[0] == ["id", "at", "note"]
    return [int(row[0]) for row in rows[1:]]


def file_ids(kit: Kit, record: DumpRecord, number: int = 0) -> list[int]:
    return ids(gzip.decompress((kit.folder / "exports" / record.files[number].key).read_bytes()))


def test_batches_of_hours_hold_exactly_their_rows(events: Kit) -> None:
    records = dumped(events, "2025-01-01 08:00", "2025-01-01 18:00", "4 hours")
    assert [record.rows for record in records] == [40, 40, 20]
    assert [file_ids(events, record) for record in records] == [
        list(range(80, 120)),
        list(range(120, 160)),
        list(range(160, 180)),
    ]
    assert records[0].files[0].key.endswith("-2025-01-01-0800_2025-01-01-1200.csv.gz")
    assert records[0].files[0].key.startswith(f"dumps/g/{events.name}/")


def test_nothing_takes_a_dump_for_a_partition(events: Kit) -> None:
    dumped(events, "2025-01-01 08:00", "2025-01-01 18:00")
    with opened(events) as ctx:
        assert ctx.catalog.exports(events.table.id, published=False, expired=True) == []
        assert [row.state for row in ctx.catalog.dumps(events.table.id)] == ["published"]
        assert sweep([ctx], grace_seconds=0) == []
    assert len(events.visible_files()) == 1
    events.exported()
    assert events.cleanup().deleted == 240


def test_pages_have_each_the_header_and_their_rows(events: Kit) -> None:
    (record,) = dumped(events, "2025-01-01", "2025-01-02", page_rows=100)
    assert [page.rows for page in record.pages] == [100, 100, 40]
    assert [file_ids(events, record, n) for n in range(3)] == [
        list(range(100)),
        list(range(100, 200)),
        list(range(200, 240)),
    ]
    assert record.files[2].key.endswith("-p0003.csv.gz")
    whole = events.export()
    assert (record.rows, record.row_digest) == (whole.rows, whole.row_digest)


def test_a_zip_has_an_entry_a_page_and_the_same_bytes_each_time(events: Kit, tmp_path: Path) -> None:
    (record,) = dumped(events, "2025-01-01", "2025-01-02", page_rows=100, container=Container.ZIP)
    (again,) = dumped(
        events, "2025-01-01", "2025-01-02", page_rows=100, container=Container.ZIP, folder=str(tmp_path / "other")
    )
    assert record.files[0].sha256 == again.files[0].sha256
    with zipfile.ZipFile(events.folder / "exports" / record.files[0].key) as found:
        assert found.testzip() is None
        assert [ids(found.read(name)) for name in found.namelist()] == [
            list(range(100)),
            list(range(100, 200)),
            list(range(200, 240)),
        ]
        assert found.namelist() == [page.name for page in record.pages]
    assert (tmp_path / "other" / again.files[0].key).is_file()


def test_a_range_without_rows_is_one_file_with_a_header(events: Kit) -> None:
    for container in (Container.NONE, Container.ZIP):
        (record,) = dumped(events, "2025-03-01", "2025-03-02", page_rows=5, container=container)
        assert (record.rows, len(record.files), len(record.pages)) == (0, 1, 1)


def test_a_dump_that_would_say_the_same_publishes_nothing(events: Kit) -> None:
    first, second = (dumped(events, "2025-01-01", "2025-01-01 12:00")[0] for _ in range(2))
    assert (first.unchanged, second.unchanged) == (False, True)
    assert len(events.visible_files()) == 1
    events.sql("UPDATE t SET note = 'new' WHERE id = 3")
    (third,) = dumped(events, "2025-01-01", "2025-01-01 12:00")
    assert third.files[0].key.endswith("-g2.csv.gz")
    assert len(events.visible_files()) == 2


def test_a_damaged_dump_is_made_again(events: Kit) -> None:
    (first,) = dumped(events, "2025-01-01", "2025-01-01 12:00")
    (events.folder / "exports" / first.files[0].key).write_bytes(b"?")
    assert not dumped(events, "2025-01-01", "2025-01-01 12:00")[0].unchanged


def test_more_pages_than_can_be_open_are_an_error_and_nothing_is_published(
    events: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export_pipelines.steps.dump_pages.MAX_FILES", 5)
    with pytest.raises(RequestError, match="more than 5 pages"):
        dumped(events, "2025-01-01", "2025-01-02", page_rows=10)
    assert events.all_files() == []
    assert dumped(events, "2025-01-01", "2025-01-02", page_rows=10, container=Container.ZIP)[0].rows == 240


def test_two_dumps_of_a_range_to_one_place_at_once_are_refused(events: Kit, tmp_path: Path) -> None:
    with opened(events) as ctx:
        (batch,) = plan_dump(ctx.table, DumpRequest("2025-01-01", "2025-01-01 12:00"), datetime.now(UTC)).batches
        name = f"dump {ctx.table.id} {batch.window.partition} {ctx.exports.url}"
        with Catalog(events.catalog_url).lock(name, "dumping"), pytest.raises(PartitionBusy):
            dump_window(ctx, batch.window, Output())
        assert events.all_files() == []


@pytest.mark.parametrize("container", [Container.NONE, Container.ZIP])
def test_an_error_of_the_query_leaves_nothing(events: Kit, container: Container) -> None:
    events.select = (
        "SELECT id, at, 1 / (200 - id) AS note FROM t WHERE at >= %(window_start)s AND at < %(window_end)s ORDER BY id"
    )
    events.spec = {"cleanup": "off"}
    with pytest.raises(SourceError, match="division by zero"):
        dumped(events, "2025-01-01", "2025-01-02", page_rows=50, container=container)
    assert events.all_files() == []
    with opened(events) as ctx:
        assert [row.state for row in ctx.catalog.dumps(events.table.id)] == ["failed"]


def test_a_name_that_is_taken_at_the_last_moment_publishes_nothing(
    events: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = FileWriter.publish

    def taken(self: FileWriter) -> None:
        if "-p0002" in self._name:
            raise ObjectExists("taken")
        publish(self)

    monkeypatch.setattr(FileWriter, "publish", taken)
    with pytest.raises(ObjectExists):
        dumped(events, "2025-01-01", "2025-01-02", page_rows=100)
    assert events.visible_files() == []
    monkeypatch.undo()
    assert not dumped(events, "2025-01-01", "2025-01-02", page_rows=100)[0].unchanged


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours runs after it."""


@pytest.mark.parametrize(("after", "whole"), [(0, False), (1, False), (3, True)])
def test_a_dump_that_was_killed_while_publishing_is_made_good(
    events: Kit, monkeypatch: pytest.MonkeyPatch, after: int, whole: bool
) -> None:
    def killed(self: Any, writers: list[Any], files: Any) -> None:
        for writer in writers[:after]:
            writer.publish()
        raise Killed

    monkeypatch.setattr(dump_step._Attempt, "_publish", killed)
    monkeypatch.setattr(Catalog, "fail_dump", lambda *a, **k: None)
    with pytest.raises(Killed):
        dumped(events, "2025-01-01", "2025-01-02", page_rows=100)
    monkeypatch.undo()
    assert len(events.visible_files()) == after
    with opened(events) as ctx:
        gone = settle_dumps(ctx)
        assert len(gone) == (0 if whole else after)
        assert [row.state for row in ctx.catalog.dumps(events.table.id)] == ["published" if whole else "failed"]
    assert len(events.visible_files()) == (3 if whole else 0)
    assert dumped(events, "2025-01-01", "2025-01-02", page_rows=100)[0].unchanged is whole


# Reports


def entries(kit: Kit) -> list[tuple[Any, ...]]:
    return kit.sql("SELECT file_path, row_count, file_size FROM report ORDER BY file_path")


def reported(kit: Kit, **report: Any) -> Kit:
    kit.spec["dump"] = {"report": {"table": "report", **report}}
    return kit


def test_each_published_file_is_entered_once(events: Kit) -> None:
    reported(events)
    export = events.export()
    (pages,) = dumped(events, "2025-01-01", "2025-01-02", page_rows=100)
    dumped(events, "2025-01-01", "2025-01-02", page_rows=100)
    events.export()
    folder = events.folder / "exports"
    expected = [(str(folder / export.file.key), 240, export.file.size)]
    rows = zip(pages.files, pages.pages, strict=True)
    expected += [(str(folder / file.key), page.rows, file.size) for file, page in rows]
    assert entries(events) == sorted(expected)
    assert all(Path(path).stat().st_size == size for path, _, size in entries(events))
    ((start, end, kind),) = events.sql("SELECT DISTINCT range_start, range_end, dump_type FROM report")
    assert (start, end, kind) == (datetime(2025, 1, 1), datetime(2025, 1, 2, tzinfo=UTC), events.name)


def test_times_without_zone_are_local_to_the_table(events: Kit) -> None:
    reported(events)
    events.spec["partitions"] = {"every": "day", "start": "2025-01-01", "timezone": "Europe/Tallinn"}
    dumped(events, "2025-01-01 08:00", "2025-01-01 10:00")
    assert events.sql("SELECT range_start, range_end FROM report") == [
        (datetime(2025, 1, 1, 8), datetime(2025, 1, 1, 8, tzinfo=UTC))
    ]


def test_columns_go_by_other_names_or_not_at_all(events: Kit) -> None:
    events.sql('CREATE TABLE "Old Reports" ("path %%" text UNIQUE, n bigint)')
    names = dict.fromkeys(["name", "type", "size", "range_start", "range_end", "date"])
    reported(events, table='"Old Reports"', columns={"path": "path %%", "rows": "n", **names})
    dumped(events, "2025-01-01", "2025-01-01 12:00")
    assert events.sql('SELECT n FROM "Old Reports"') == [(120,)]


def test_a_report_may_be_in_another_database(events: Kit, second_database: str) -> None:
    run_each(second_database, REPORT)
    events.spec["dump"] = {"report": {"table": "public.report", "connection": "reports"}}
    with opened(events, reports=PostgresSource(second_database)) as ctx:
        export_partition(ctx, DAY)
    assert run_each(second_database, "SELECT row_count FROM report") == [(240,)]
    assert entries(events) == []


@pytest.mark.parametrize("step", ["export", "dump", "sweep"])
def test_a_file_that_could_not_be_entered_is_entered_by_what_comes_next(events: Kit, step: str) -> None:
    reported(events, table="missing")
    with pytest.raises(SourceError, match="are published but not entered"):
        events.export()
    assert len(entries(events)) == 0
    events.sql("DROP TABLE report", REPORT.replace("report (", "missing ("))
    if step == "export":
        assert events.export().unchanged
    elif step == "dump":
        dumped(events, "2025-01-01", "2025-01-01 12:00")
    else:
        with opened(events) as ctx:
            sweep([ctx])
    assert (240,) in events.sql("SELECT row_count FROM missing")


def test_an_entry_that_was_committed_before_a_crash_is_not_made_twice(
    events: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> None:
        raise Killed

    reported(events)
    monkeypatch.setattr(Catalog, "note_entered", killed)
    with pytest.raises(Killed):
        events.export()
    monkeypatch.undo()
    assert len(entries(events)) == 1
    with opened(events) as ctx:
        assert settle_reports(ctx) == 1
        assert settle_reports(ctx) == 0
    assert len(entries(events)) == 1


def test_no_entry_is_made_of_a_file_that_is_gone(events: Kit) -> None:
    export = events.export()
    (events.folder / "exports" / export.file.key).unlink()
    reported(events)
    with opened(events) as ctx:
        assert settle_reports(ctx) == 0
    assert entries(events) == []


# In Dagster


@pytest.fixture
def folder(tmp_path: Path, database: str, catalog_url: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A project with the table `demo/events` of ten days, entered in `report`."""
    for name, value in {
        "DATABASE_URL": database,
        "DAGSTER_PG_URL": catalog_url,
        "EXPORT_PATH": str(tmp_path / "exports"),
        "ARCHIVE_URL": (tmp_path / "archive").as_uri(),
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "project").mkdir()
    made = new_project(tmp_path / "project")
    made.write(
        "assets/demo/events/defs.yaml",
        """
        type: export_pipelines.ExportTable
        attributes:
          table: public.events
          time_column: at
          partitions: {every: day, start: 2025-01-01}
          retries: {attempts: 0}
          dump: {batch_days: 1, report: {connection: source, table: report}}
        """,
    )
    make_events(database)
    query(database, REPORT)
    return made


def run_dump(folder: Folder, instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    job = folder.load().definitions().resolve_job_def("demo__events_dump")
    run_config = {"ops": {"demo__events___dump": {"config": config}}}
    return job.execute_in_process(instance=instance, run_config=run_config, raise_on_error=False)


def test_job_records_whole_partitions_as_such_and_observes_the_rest(folder: Folder, database: str) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_dump(folder, instance, start="2025-01-01", end="2025-01-03 00:10")
        assert result.success
        key = dg.AssetKey(["demo", "events_export"])
        assert instance.get_materialized_partitions(key) == {"2025-01-01", "2025-01-02"}
        (event,) = [event for event in result.all_events if event.is_asset_observation]
        seen = event.asset_observation_data.asset_observation
        values = {name: value.value for name, value in seen.metadata.items()}
        assert (seen.asset_key, seen.partition) == (key, None)
        assert (values["dump"], values["rows"]) == ("2025-01-03-00:00..2025-01-03-00:10", 9)
        assert Path(values["files"][0]["path"]).is_file()
        assert query(database, "SELECT row_count FROM report ORDER BY row_count") == [(9,), (20,), (20,)]
        checks = {each.check_name for each in result.get_asset_check_evaluations()}
        assert checks <= {"schema_unchanged"}
        again = run_dump(folder, instance, start="2025-01-01", end="2025-01-03 00:10")
        assert again.success
    assert query(database, "SELECT count(*) FROM report") == [(3,)]


def test_job_goes_on_after_a_batch_that_fails_and_fails_at_its_end(folder: Folder, database: str) -> None:
    folder.write(
        "assets/demo/events/select.sql",
        "SELECT id, at, 1 / (1003 - id) FROM events WHERE at >= %(window_start)s AND at < %(window_end)s",
    )
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_dump(folder, instance, start="2025-01-01", end="2025-01-04")
        assert not result.success
        (event,) = result.filter_events(lambda event: event.is_step_failure)
        assert "division by zero" in str(event.step_failure_data.user_failure_data)
        key = dg.AssetKey(["demo", "events_export"])
        assert instance.get_materialized_partitions(key) == {"2025-01-01", "2025-01-03"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "needs a range"),
        ({"start": "2025-01-02", "end": "2025-01-01"}, "which is not later"),
        ({"start": "2025-01-01", "end": "2999-01-01"}, "is open until"),
        ({"start": "2025-01-01", "end": "2025-01-02", "batch": "often"}, "no length"),
    ],
)
def test_job_refuses_a_bad_range_and_publishes_nothing(
    folder: Folder, tmp_path: Path, database: str, config: dict[str, str], message: str
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_dump(folder, instance, **config)
        (event,) = result.filter_events(lambda event: event.is_step_failure)
        assert message in str(event.step_failure_data.user_failure_data)
    assert list(tmp_path.rglob("*.gz")) == []
    assert query(database, "SELECT count(*) FROM report") == [(0,)]
