"""Tables in other formats than CSV through all steps: generations, proofs, dumps, drills, previews, restores."""

from __future__ import annotations

import csv
import io
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from export_pipelines.cli.inspection import check_table
from export_pipelines.components.preview import preview
from export_pipelines.errors import CleanupRefused, FormatError, SpecError
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.dump import Container, parse_interval
from export_pipelines.specs.loader import TABLE_TYPE
from export_pipelines.steps.drill import drill
from export_pipelines.steps.dump import dump_window
from export_pipelines.steps.dump_plan import DumpRequest, plan_dump
from export_pipelines.steps.pieces import Choice
from export_pipelines.steps.restore_file import restore_to_file
from export_pipelines.steps.verify import verify_table
from tests.integration.test_restore import DAY, SPEC, make_events
from tests.support.step_tables import StepTable, new_step_table

OTHERS = ["json", "jsonl", "parquet"]


def events_as(folder: Path, url: str, catalog_url: str, name: str, **more: Any) -> StepTable:
    """Ten rows on each of two days, with a float; archived in a format."""
    make_events(url)
    spec = {**SPEC, "format": {"type": name}, "compression": "none", **more}
    table = new_step_table(folder, url, catalog_url, spec)
    table.sql("ALTER TABLE events ADD f float8; UPDATE events SET f = id / 3.0")
    return table


@pytest.fixture(params=OTHERS)
def events(request: pytest.FixtureRequest, tmp_path: Path, database: str, catalog_url: str) -> StepTable:
    return events_as(tmp_path, database, catalog_url, request.param)


def ids(table: StepTable, relation: str) -> list[int]:
    return [row[0] for row in table.sql(f"SELECT id FROM {relation} ORDER BY 1")]


def test_each_row_of_several_generations_comes_back_once(events: StepTable) -> None:
    events.sql("CREATE TABLE kept AS SELECT * FROM events WHERE at < '2025-01-02Z'")
    events.into_archive(DAY)
    assert events.cleanup(DAY).complete
    late = "INSERT INTO {} VALUES (50, '2025-01-01 20:00Z', 'late', 0.1)"
    events.sql("; ".join(late.format(name) for name in ("events", "kept")))
    assert events.into_archive(DAY).generation == 2
    assert verify_table(events.ctx.archive, events.id).intact
    assert events.restore("back", DAY).rows == 11
    assert events.sql("SELECT * FROM kept EXCEPT SELECT * FROM back") == []


def test_an_export_of_the_same_rows_is_not_published_again(events: StepTable) -> None:
    first, again = events.export(DAY), events.export(DAY)
    assert not first.unchanged and again.unchanged and again.file == first.file


def test_rewritten_rows_are_proved_by_content(events: StepTable) -> None:
    events.into_archive(DAY)
    events.sql("VACUUM FULL events")
    assert events.cleanup(DAY).complete
    assert len(ids(events, "events")) == 10


def test_content_proves_nothing_where_the_file_spells_values_in_another_way(
    tmp_path: Path, database: str, catalog_url: str
) -> None:
    table = events_as(tmp_path, database, catalog_url, "parquet", session_timezone="Asia/Kolkata")
    record = table.into_archive(DAY)
    assert not record.exact
    report = verify_table(table.ctx.archive, table.id)
    assert report.intact and report.rows == 10
    table.sql("VACUUM FULL events")
    with pytest.raises(CleanupRefused, match="does not give back the text"):
        table.cleanup(DAY)
    assert len(ids(table, "events")) == 20


def test_identities_prove_the_rows_of_such_a_file(tmp_path: Path, database: str, catalog_url: str) -> None:
    table = events_as(tmp_path, database, catalog_url, "parquet", session_timezone="Asia/Kolkata")
    table.sql("CREATE TABLE kept AS SELECT * FROM events WHERE at < '2025-01-02Z'")
    table.into_archive(DAY)
    assert table.cleanup(DAY).complete
    table.restore("back", DAY)
    assert table.sql("SELECT * FROM kept EXCEPT SELECT * FROM back") == []
    assert drill(table.archived(), PostgresSource(table.url)).rows == 10


def test_a_drill_restores_and_reads_back_the_same_rows(events: StepTable) -> None:
    record = events.into_archive(DAY)
    found = drill(events.archived(), PostgresSource(events.url))
    assert (found.rows, found.row_digest) == (10, record.row_digest)


def test_a_restore_to_a_file_gives_csv_with_a_header(events: StepTable) -> None:
    events.into_archive(DAY)
    restore_to_file(events.archived(), Choice(), events.folder / "all.csv")
    with (events.folder / "all.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "at", "note", "f"] and len(rows) == 11
    assert rows[1] == ["1", "2025-01-01 00:01:00+00", "", "0.3333333333333333"]


def test_a_preview_shows_the_first_rows(events: StepTable) -> None:
    record = events.export(DAY)
    shown = preview(events.ctx.exports, record, 2).splitlines()
    assert shown[0] == "| id | at | note | f |" and len(shown) == 4
    assert shown[2].startswith("| 1 | 2025-01-01 00:01:00+00 |")


def test_a_damaged_file_is_found_by_verify(events: StepTable) -> None:
    events.into_archive(DAY)
    file = events.archived_file()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    report = verify_table(events.ctx.archive, events.id)
    assert len(report.problems) == 1 and "SHA-256" in report.problems[0]


@pytest.mark.parametrize("container", [Container.NONE, Container.ZIP])
def test_a_dump_has_pages_of_the_format(events: StepTable, container: Container) -> None:
    name = events.ctx.table.spec.format.type
    request = DumpRequest("2025-01-01", "2025-01-02", parse_interval("1 day"), page_rows=4, container=container)
    plan = plan_dump(events.ctx.table, request, datetime.now(UTC))
    record = dump_window(events.ctx, plan.batches[0].window, plan.output)
    assert (record.rows, len(record.pages), record.layout) == (10, 3, events.ctx.table.spec.format)
    assert all(page.name.endswith(f".{name}") for page in record.pages)
    stored = events.ctx.exports.get(record.files[0].key)
    if container is Container.ZIP:
        with zipfile.ZipFile(io.BytesIO(stored)) as archive:
            stored = archive.read(archive.namelist()[0])
    if name == "parquet":
        assert parquet.read_table(io.BytesIO(stored)).column("id").to_pylist() == [1, 2, 3, 4]


def test_a_value_that_does_not_fit_fails_the_export_and_nothing_is_published(
    tmp_path: Path, database: str, catalog_url: str
) -> None:
    table = events_as(tmp_path, database, catalog_url, "json")
    table.sql("UPDATE events SET f = 'NaN' WHERE id = 7")
    with pytest.raises(FormatError, match="column 'f' has 'NaN'"):
        table.export(DAY)
    assert not [path for path in (tmp_path / "exports").rglob("*") if path.is_file()]
    assert table.with_definition(spec={"format": {"type": "json", "conversions": {"f": "text"}}}).export(DAY).exact


def test_check_tells_what_a_format_does_not_hold(tmp_path: Path, database: str, catalog_url: str) -> None:
    table = events_as(tmp_path, database, catalog_url, "excel")
    table.ctx.table.folder.mkdir(parents=True)
    file = table.ctx.table.folder / "defs.yaml"
    file.write_text(f"type: {TABLE_TYPE}\nattributes:\n  table: events\n  format:\n    type: excel\n")
    table.sql("ALTER TABLE events ADD big bigint")
    (error,) = check_table(PostgresSource(database), table.ctx.table).errors
    assert "column 'big'" in error.message and (error.file, error.line) == (file, 4)
    declared = table.with_definition(spec={"format": {"type": "excel", "conversions": {"big": "text", "bog": "text"}}})
    (error,) = check_table(PostgresSource(database), declared.ctx.table).errors
    assert "'bog'" in error.message


def test_a_copy_with_a_dialect_of_its_own_has_no_other_format(tmp_path: Path, database: str, catalog_url: str) -> None:
    make_events(database)
    copy = "COPY (SELECT * FROM events) TO STDOUT WITH (FORMAT csv, DELIMITER ';')"
    table = new_step_table(tmp_path, database, catalog_url, {"format": {"type": "parquet"}}, select=copy)
    with pytest.raises(SpecError, match="another format"):
        table.export()
