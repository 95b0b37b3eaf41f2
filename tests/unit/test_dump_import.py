"""Dumps of an older system as tables, and its command line."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from export_pipelines.cli.dump_alias import translated, understood
from export_pipelines.cli.dump_import import Imported, convert, import_dumps
from export_pipelines.errors import RequestError
from export_pipelines.specs.loader import load_tables

DUMPS = """
dumps:
  zm:
    query_file: sql/zm.sql
    date_range: required
    batch_days: 7
    output_dir: $ZM_DIR
    description: "Vaccinations: all"
    e_mail: ops@example.org
  bcu: {query_file: sql/bcu.sql, date_range: prohibited}
"""


RESOURCES = """
type: export_pipelines.PostgresConnection
attributes: {resource_key: source, url: {env: DATABASE_URL}}
---
type: export_pipelines.MysqlConnection
attributes: {resource_key: health, url: {env: HEALTH_DATABASE_URL}}
---
type: export_pipelines.Store
attributes: {resource_key: archive, url: {env: ARCHIVE_URL}}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, with an old dumps.yaml beside it."""
    (tmp_path / "project/assets").mkdir(parents=True)
    (tmp_path / "project/workspace.yaml").write_text("load_from: []\n")
    (tmp_path / "project/resources").mkdir()
    (tmp_path / "project/resources/defs.yaml").write_text(RESOURCES)
    (tmp_path / "old/sql").mkdir(parents=True)
    (tmp_path / "old/dumps.yaml").write_text(DUMPS)
    (tmp_path / "old/sql/zm.sql").write_text("SELECT * FROM v WHERE at >= :start_date AND at < :end_date -- :x\n")
    (tmp_path / "old/sql/bcu.sql").write_text("SELECT DATE_FORMAT(d, '%Y') FROM b\n")
    monkeypatch.setenv("EXPORT_PIPELINES_PROJECT", str(tmp_path / "project"))
    return tmp_path


def test_an_old_file_becomes_tables_that_load(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_dumps(root / "old/dumps.yaml", False, Path("assets/health"), "health") == 0
    loaded = load_tables(root / "project")
    assert not loaded.broken
    zm, bcu = loaded.tables["health/zm"], loaded.tables["health/bcu"]
    assert zm.select_sql == "SELECT * FROM v WHERE at >= %(window_start)s AND at < %(window_end)s -- :x\n"
    assert (zm.spec.connection, zm.spec.description, zm.spec.dump.range) == ("health", "Vaccinations: all", "required")
    assert zm.spec.partitions is not None and zm.spec.dump.folder is not None
    assert bcu.select_sql == "SELECT DATE_FORMAT(d, '%Y') FROM b\n"
    assert (bcu.spec.partitions, bcu.spec.dump.range) == (None, "prohibited")
    told = capsys.readouterr().err
    assert "not carried over: e_mail: 'ops@example.org'" in told
    assert "ops@example.org" in (root / "project/assets/health/zm/defs.yaml").read_text()


def test_what_exists_is_never_overwritten(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = root / "project/assets/dumps/zm/select.sql"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert import_dumps(root / "old/dumps.yaml", False, None, "source") == 1
    assert mine.read_text() == "mine"
    assert (root / "project/assets/dumps/bcu/select.sql").exists()
    assert "exists already" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(root: Path) -> None:
    assert import_dumps(root / "old/dumps.yaml", False, None, "source", dry_run=True) == 0
    assert list((root / "project/assets").iterdir()) == []


def test_variables_are_imported_by_what_their_queries_ask_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUERY_FILE_ZM", str(root / "old/sql/zm.sql"))
    (root / "project/.env").write_text(f"QUERY_FILE_BCU={root / 'old/sql/bcu.sql'}\n")
    assert import_dumps(None, True, None, "source") == 0
    tables = load_tables(root / "project").tables
    assert {name: each.spec.partitions is not None for name, each in tables.items()} == {
        "dumps/bcu": False,
        "dumps/zm": True,
    }


def test_nothing_to_import_is_an_error(root: Path) -> None:
    with pytest.raises(RequestError, match="nothing to import"):
        import_dumps(None, True, None, "source")
    (root / "old/dumps.yaml").write_text("dump: {}")
    with pytest.raises(RequestError, match="no mapping `dumps`"):
        import_dumps(root / "old/dumps.yaml", False, None, "source")


@pytest.mark.parametrize(("name", "hint"), [("healht", "did you mean 'health'"), ("archive", "health, source")])
def test_an_unknown_connection_is_refused_before_anything_is_written(root: Path, name: str, hint: str) -> None:
    with pytest.raises(RequestError, match="no connection") as error:
        import_dumps(root / "old/dumps.yaml", False, None, name)
    assert hint in error.value.hint
    assert list((root / "project/assets").iterdir()) == []


@pytest.mark.parametrize(("days", "partitions"), [(1, "every: day"), (7, "every: week"), (3, "every_days: 3")])
def test_the_days_of_a_batch_become_partitions_which_is_told(
    root: Path, capsys: pytest.CaptureFixture[str], days: int, partitions: str
) -> None:
    (root / "old/dumps.yaml").write_text(DUMPS.replace("batch_days: 7", f"batch_days: {days}"))
    assert import_dumps(root / "old/dumps.yaml", False, None, "health") == 0
    assert f"became partitions `{partitions}` from 2024-01-01 on, in UTC" in capsys.readouterr().err
    assert (
        f"partitions: {{{partitions}, start: 2024-01-01}}" in (root / "project/assets/dumps/zm/defs.yaml").read_text()
    )
    assert load_tables(root / "project").tables["dumps/zm"].spec.dump.batch_days == days


S, E = "%(window_start)s", "%(window_end)s"
CONVERTED = [
    ("d >= ? AND d < ?", f"d >= {S} AND d < {E}"),
    ("d >= %s AND d < %s", f"d >= {S} AND d < {E}"),
    ("d >= {start_date} AND d < {end_date}", f"d >= {S} AND d < {E}"),
    ("d >= '{start_date}' AND d < '{end_date} 00:00:00'", f"d >= {S} AND d < {E}"),
    ("d >= %(start)s AND d < %(end)s", f"d >= {S} AND d < {E}"),
    ("d >= :start_date AND x = '?' AND d < :end_date # ? {end}", f"d >= {S} AND x = '?' AND d < {E} # ? {{end}}"),
    ("d::date >= :start", f"d::date >= {S}"),
    ("x = ':colon' AND j = '{\"a\": 1}' AND d >= ?", f"x = ':colon' AND j = '{{\"a\": 1}}' AND d >= {S}"),
]


@pytest.mark.parametrize(("old", "new"), CONVERTED, ids=[old for old, _ in CONVERTED])
def test_old_placeholders_become_parameters(old: str, new: str) -> None:
    made = Imported("x")
    assert convert(old, made)[0] == new
    assert not made.problems


@pytest.mark.parametrize(
    "old", ["d >= :facility", "d >= {unit}", "x = ? AND y = ? AND z = ?", "d <= '{end_date} 23:59:59'"]
)
def test_a_placeholder_without_counterpart_is_a_problem(old: str) -> None:
    made = Imported("x")
    convert(old, made)
    assert made.problems


def test_an_end_that_was_included_is_told() -> None:
    made = Imported("x")
    convert("d BETWEEN {start} AND {end}\n  OR\n e <= {end} OR f < {end}", made)
    assert [note.partition(": ")[0] for note in made.notes] == ["select.sql:1", "select.sql:3"]
    assert "the end of a range is excluded here" in made.notes[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--dump bcu", "dump bcu"),
        ("--dump zm 2024-01-01 2024-01-31", "dump zm --start 2024-01-01 --end 2024-02-01"),
        ("--dump zm 2024-01-01 2024-02-28 --json", "dump zm --start 2024-01-01 --end 2024-02-29 --json"),
        ("--project /x --dump zm 2024-01-01 no-date", "--project /x dump zm --start 2024-01-01 --end no-date"),
        ("--dump zm bcu vaud", "dump zm bcu vaud"),
        ("run zm --dump", "run zm --dump"),
        ("-v --dump zm", "-v dump zm"),
    ],
)
def test_the_old_command_line_is_an_alias_whose_days_are_both_included(old: str, new: str) -> None:
    assert translated(old.split()) == new.split()


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("--dump zm 2024-02-14", "no last one; both are included, so one day is: --dump zm 2024-02-14 2024-02-14"),
        ("--dump zm 2024-02-14 2024-02-13", "the first day, 2024-02-14, is later than the last, 2024-02-13"),
    ],
)
def test_days_of_the_old_form_that_make_no_range_are_wrong_usage(old: str, message: str) -> None:
    with pytest.raises(click.UsageError) as error:
        translated(old.split())
    assert message in error.value.message


def test_the_old_form_tells_where_its_last_day_went(capsys: pytest.CaptureFixture[str]) -> None:
    understood(["--dump", "zm", "2024-01-01", "2024-01-31"])
    told = capsys.readouterr().err
    assert "its end excluded: export-pipelines dump zm --start 2024-01-01 --end 2024-02-01" in told
    understood(["--dump", "bcu"])
    assert capsys.readouterr().err == ""
