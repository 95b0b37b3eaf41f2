"""SHA256SUMS and CREATE TABLE lie beside each archived file, and a person with a shell can rely on them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from export_pipelines.steps.verify import verify_table
from export_pipelines.stores import open_store
from tests.support.tables import Kit

HOSTILE = "a\"b\n; DROP TABLE t; -- 'c\\"


@pytest.fixture
def events(kit: Kit) -> Kit:
    kit.sql(
        "CREATE TABLE t (id int PRIMARY KEY, note varchar(20), price numeric(8,2)[])",
        "INSERT INTO t SELECT n, 'a' || n, '{1.50}' FROM generate_series(1, 5) n",
    )
    kit.spec = {"table": "t"}
    return kit


def folder_of(kit: Kit) -> Path:
    """The folder of the first artifact."""
    [entry] = kit.entries()
    return (kit.folder / "archive" / entry.file.key).parent


def sha256sum(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_sha256sum_checks_all_that_is_in_the_folder(events: Kit) -> None:
    events.exported()
    folder = folder_of(events)
    done = sha256sum(folder)
    assert done.returncode == 0, done.stderr
    checked = {line.rpartition(":")[0] for line in done.stdout.splitlines()}
    assert checked == {file.name for file in folder.iterdir()} - {"SHA256SUMS"} and len(checked) == 3
    (folder / f"{events.name}.sql").write_text("other")
    assert sha256sum(folder).returncode == 1


def test_companions_are_readable_for_their_owner_only(events: Kit) -> None:
    before = os.umask(0o000)
    try:
        events.exported()
    finally:
        os.umask(before)
    folder = folder_of(events)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    above = [folder, *(each for each in folder.parents if each.is_relative_to(events.folder / "archive"))]
    assert {each.stat().st_mode & 0o777 for each in above} == {0o700}


@pytest.mark.parametrize("name", ["SHA256SUMS", "{name}.sql"])
@pytest.mark.parametrize("gone", [False, True])
def test_verify_finds_a_changed_or_missing_companion(events: Kit, name: str, gone: bool) -> None:
    events.exported()
    archive = open_store((events.folder / "archive").as_uri())
    report = verify_table(archive, events.table.id)
    assert report.intact and report.unaccounted == ()
    file = folder_of(events) / name.format(name=events.name)
    file.unlink() if gone else file.write_bytes(file.read_bytes() + b" ")
    [problem] = verify_table(archive, events.table.id).problems
    assert file.name in problem and ("missing" if gone else "SHA-256") in problem


def test_the_statement_makes_the_table_whatever_its_columns_are_named(events: Kit, second_database: str) -> None:
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    events.sql(f"ALTER TABLE t RENAME COLUMN note TO {quoted}")
    events.exported()
    text = (folder_of(events) / f"{events.name}.sql").read_text()
    moved = Kit(second_database, events.catalog_url, events.folder)
    moved.sql("CREATE TABLE t (id int)", text)
    assert moved.rows("SELECT count(*) FROM t") == [0]
    columns = moved.rows(
        "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute "
        f"WHERE attrelid = 'public.{events.name}'::regclass AND attnum > 0"
    )
    assert columns == [("id", "integer"), (HOSTILE, "character varying(20)"), ("price", "numeric(8,2)[]")]


def test_an_artifact_of_an_older_version_without_companions_is_intact(events: Kit) -> None:
    events.exported()
    manifest = next((events.folder / "archive").rglob("00000001.json"))
    text = manifest.read_text()
    start = text.index(',\n "companions"')
    manifest.write_text(text[:start] + text[text.index("]", start) + 1 :])
    for name in ("SHA256SUMS", f"{events.name}.sql"):
        (folder_of(events) / name).unlink()
    assert verify_table(open_store((events.folder / "archive").as_uri()), events.table.id).intact
    shutil.rmtree(events.folder / "exports")
    assert len(events.restored()) == 5
