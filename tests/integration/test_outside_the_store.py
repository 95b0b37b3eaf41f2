"""Nothing outside of a store is read, written or deleted, whatever a definition or a manifest says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from export_pipelines.catalog import Catalog
from export_pipelines.errors import ExportPipelinesError, IntegrityError
from export_pipelines.specs.loader import load_tables
from export_pipelines.steps.sweep import sweep
from export_pipelines.steps.verify import verify_table
from export_pipelines.stores import open_store
from tests.support.tables import DAY, Kit

OUTSIDE = ["../../outside", "/outside", "g/../../../outside", "..", "a//outside", ".tmp-outside"]


@pytest.fixture
def events(kit: Kit) -> Kit:
    kit.sql(
        "CREATE TABLE t (id int PRIMARY KEY, at timestamptz)",
        "INSERT INTO t SELECT n, timestamptz '2025-01-01 00:00Z' + n * interval '1 hour' FROM generate_series(0, 9) n",
    )
    kit.window = DAY
    kit.spec = {"table": "t", "time_column": "at", "keep_export": False}
    kit.exported()
    return kit


def outside(kit: Kit, key: str) -> Path:
    """The file that such a key would be, with what a manifest says of it."""
    [entry] = kit.entries()
    archived = kit.folder / "archive" / entry.file.key  # type: ignore[union-attr]
    path = Path(os.path.normpath(kit.folder / "archive" / key.removeprefix("/")))
    if key.startswith("/"):
        path = kit.folder / "outside"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        shutil.copy(archived, path)
    return path


def manipulate(kit: Kit, key: str) -> None:
    """Let the manifest say that its files are elsewhere."""
    absolute = str(kit.folder / "outside") if key == "/outside" else key
    file = kit.folder / "archive" / kit.table.id / "manifests/00000001.json"
    said = json.loads(file.read_text())
    for part in (said["file"], said["identity_file"], *said["companions"]):
        part["key"] = absolute
    file.write_text(json.dumps(said))


@pytest.mark.parametrize("key", OUTSIDE)
def test_a_manifest_whose_keys_lead_elsewhere_opens_and_deletes_nothing_there(events: Kit, key: str) -> None:
    there = outside(events, key)
    before = there.read_bytes() if there.is_file() else None
    manipulate(events, key)
    archive = open_store((events.folder / "archive").as_uri())
    report = verify_table(archive, events.table.id)
    assert not report.intact and any("is not a key" in problem for problem in report.problems), report.problems
    with pytest.raises(ExportPipelinesError, match="is not a key"):
        events.restored()
    with pytest.raises(IntegrityError):
        events.cleanup()
    with events.opened() as context, pytest.raises(ExportPipelinesError):
        sweep([context], grace_seconds=0)
    assert (there.read_bytes() if there.is_file() else None) == before
    assert len(events.rows()) == 10


@pytest.mark.parametrize("key", OUTSIDE[:-1])
def test_a_new_catalog_does_not_make_a_manipulated_manifest_good(events: Kit, key: str, catalog_url: str) -> None:
    there = outside(events, key)
    manipulate(events, key)
    fresh = Kit(events.database, catalog_url, events.folder, events.spec, window=DAY, name=events.name)
    Catalog(catalog_url).close()
    with pytest.raises(ExportPipelinesError):
        fresh.cleanup()
    with fresh.opened() as context:
        sweep([context], grace_seconds=0)
    assert there.exists() and len(fresh.rows()) == 10


@pytest.mark.parametrize(
    "template",
    ["../{partition}", "/tmp/{partition}", "a/../../{partition}", "{table}/../../x-{partition}", ".x/{partition}"],
)
def test_a_definition_whose_files_would_leave_the_store_is_broken(tmp_path: Path, template: str) -> None:
    folder = tmp_path / "assets/g/t"
    folder.mkdir(parents=True)
    attributes = {
        "table": "t",
        "time_column": "at",
        "partitions": {"every": "day", "start": "2025-01-01"},
        "file_name": template,
    }
    document = json.dumps({"type": "export_pipelines.ExportTable", "attributes": attributes})
    (folder / "defs.yaml").write_text(document)
    loaded = load_tables(tmp_path)
    assert loaded.tables == {} and [error.field for error in loaded.errors] == ["file_name"]


def test_hostile_names_of_table_and_columns_are_quoted_everywhere(kit: Kit) -> None:
    schema, table, column = ('x"; DROP TABLE keep; --', "a.b'c", 'at" OR true; --')
    quoted = [f'"{name.replace(chr(34), chr(34) * 2)}"' for name in (schema, table, column)]
    kit.sql(
        "CREATE TABLE keep (id int)",
        f"CREATE SCHEMA {quoted[0]}",
        f'CREATE TABLE {quoted[0]}.{quoted[1]} (id int PRIMARY KEY, {quoted[2]} timestamptz, "%(x)s" text)',
        f"INSERT INTO {quoted[0]}.{quoted[1]} SELECT n, timestamptz '2025-01-01 00:00Z' + n * interval '20 hours', '' "
        "FROM generate_series(0, 3) n",
    )
    kit.window = DAY
    kit.spec = {"table": f"{quoted[0]}.{quoted[1]}", "time_column": column, "mask_columns": {"%(x)s": "'m'"}}
    assert kit.exported().rows == 2
    assert kit.cleanup().deleted == 2
    assert kit.rows(f"SELECT id FROM {quoted[0]}.{quoted[1]} ORDER BY id") == [2, 3]
    assert [row[0] for row in kit.restored()] == [0, 1]
    assert kit.rows("SELECT count(*) FROM keep") == [0]
