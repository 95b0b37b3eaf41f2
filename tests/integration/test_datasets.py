"""Data sets of a project: found, checked against their source, listed; the demo's own ones give what they say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from export_pipelines.cli.inspection_dataset import check_dataset, check_query
from export_pipelines.components.project import load_project
from export_pipelines.demo import flights
from export_pipelines.local.postgres import Address
from export_pipelines.sources.opensearch import OpenSearchSource
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.loader import Loaded, load_tables
from export_pipelines.steps.request_files import expire_requests, store_of, sweep_requests
from export_pipelines.stores import open_store
from tests.support.asking import RequestKit, request_kit
from tests.support.command_line import CommandLine
from tests.support.dagster_project import Folder, new_project
from tests.support.opensearch import opensearch_server
from tests.support.servers import new_database
from tests.support.tables import run_each

ROOT = Path(__file__).resolve().parents[2]

EVENTS = """
type: export_pipelines.ExportTable
attributes:
  table: public.events
  time_column: at
  partitions: {every: day, start: 2025-01-01}
  session_timezone: Europe/Tallinn
  exclude_columns: [secret]
  owners: ["team:data"]
  description: All that happens.
  on_demand:
    title: What happens
    filters:
      id: {type: integer}
"""
NOTES = """
type: export_pipelines.DataSet
attributes:
  filters: {id: {type: integer}}
"""
HEAD = "type: export_pipelines.DataSet\nattributes:\n"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return new_project(tmp_path)


def told(loaded: Loaded) -> list[str]:
    """`line: field: message` of every error."""
    return [f"{error.line}: {error.field}: {error.message}" for error in loaded.errors]


# Finding them


def test_a_folder_of_that_type_is_a_data_set_and_no_table(folder: Folder) -> None:
    folder.write("assets/g/notes/defs.yaml", NOTES)
    folder.write("assets/g/notes/select.sql", "SELECT 1 AS id")
    loaded = load_tables(folder.root)
    assert (list(loaded.tables), list(loaded.datasets), loaded.broken) == ([], ["g/notes"], [])
    found = loaded.datasets["g/notes"]
    assert (found.select_sql, found.title, len(found.version)) == ("SELECT 1 AS id", "notes", 64)


def test_a_table_may_be_a_data_set_of_all_of_its_rows(folder: Folder) -> None:
    folder.write("assets/g/events/defs.yaml", EVENTS)
    loaded = load_tables(folder.root)
    found = loaded.datasets["g/events"]
    assert list(loaded.tables) == ["g/events"]
    assert (found.spec.table, found.select_sql, found.title) == ("public.events", None, "What happens")
    assert (found.spec.timezone, found.spec.exclude_columns) == ("Europe/Tallinn", ("secret",))
    assert (found.spec.description, found.spec.owners) == ("All that happens.", ("team:data",))


def test_a_select_sql_of_one_partition_cannot_be_on_demand(folder: Folder) -> None:
    folder.write("assets/g/events/defs.yaml", EVENTS.replace("exclude_columns: [secret]", "preview_rows: 0"))
    folder.write("assets/g/events/select.sql", "SELECT * FROM events WHERE at < %(window_end)s")
    loaded = load_tables(folder.root)
    assert told(loaded) == [
        "10: on_demand: select.sql gives the rows of one partition, so rows of all of them cannot be asked for"
    ]
    assert (loaded.tables, loaded.datasets) == ({}, {})


@pytest.mark.parametrize(
    ("text", "files", "message"),
    [
        ("  title: x\n", [], "2: : neither `table`, `index` nor select.sql says what may be asked for"),
        ("  table: a.b\n", ["select.sql"], "3: table: `table` and a select.sql beside it both say what is asked for"),
        ("  table: a.b\n", ["delete.sql"], "0: : a data set deletes nothing"),
        ("  table: a.b\n  owners: [me]\n", [], "4: owners[0]: is neither an e-mail address nor `team:name`"),
        ("  table: a.b\n  titel: x\n", [], "4: titel: unknown field"),
        ("  table: a.b\n  filters: {a: {type: number}}\n", [], "4: filters.a.type: should be"),
        ("  table: a.b\n  columns: [a]\n  widen: {column: b, keys: [x]}\n", [], "5: widen.column: column 'b' is not"),
        ("  table: a.b\n  row_limit: 0\n", [], "4: row_limit: "),
    ],
)
def test_what_is_wrong_is_told_by_line(folder: Folder, text: str, files: list[str], message: str) -> None:
    folder.write("assets/g/x/defs.yaml", "")
    (folder.root / "assets/g/x/defs.yaml").write_text(HEAD + text)
    for name in files:
        folder.write(f"assets/g/x/{name}", "SELECT 1")
    loaded = load_tables(folder.root)
    assert len(told(loaded)) == 1
    assert told(loaded)[0].startswith(message)
    assert loaded.datasets == {}


def test_a_broken_data_set_takes_no_other_down(folder: Folder) -> None:
    folder.write("assets/g/events/defs.yaml", EVENTS)
    folder.write("assets/g/x/defs.yaml", HEAD + "  nothing: 1\n")
    project = folder.load()
    assert list(project.datasets) == ["g/events"]
    assert [each.id for each in project.broken] == ["g/x"]


def test_a_data_set_and_a_table_never_share_an_id(folder: Folder) -> None:
    folder.write("assets/g/events/defs.yaml", EVENTS)
    folder.write("assets/G/Events/defs.yaml", HEAD + "  table: public.events\n")
    loaded = load_tables(folder.root)
    assert (loaded.tables, loaded.datasets) == ({}, {})
    assert sorted(each.id for each in loaded.broken) == ["G/Events", "g/events"]
    assert any("data set 'G/Events' is also defined in" in message for message in told(loaded))


# In the project


def test_the_engine_is_that_of_the_connection(folder: Folder) -> None:
    folder.write(
        "resources/search/defs.yaml",
        'type: export_pipelines.OpenSearch\nattributes: {resource_key: search, url: "http://127.0.0.1:9"}\n',
    )
    folder.write("assets/g/logs/defs.yaml", HEAD + "  connection: search\n  index: logs\n")
    folder.write("assets/g/rows/defs.yaml", HEAD + "  table: public.rows\n")
    project = folder.load()
    assert {name: each.engine for name, each in project.datasets.items()} == {
        "g/logs": "opensearch",
        "g/rows": "postgresql",
    }
    assert isinstance(project.resources["search"].open(), OpenSearchSource)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  connection: sauce\n  table: t\n", "there is no connection 'sauce' in resources/"),
        ("  index: logs\n", "connection 'source' leads to a database without any"),
        ("  connection: exports\n  table: t\n", "there is no connection 'exports'"),
    ],
)
def test_a_connection_that_does_not_fit_breaks_the_data_set(folder: Folder, text: str, message: str) -> None:
    folder.write("assets/g/x/defs.yaml", "")
    (folder.root / "assets/g/x/defs.yaml").write_text(HEAD + text)
    project = folder.load()
    assert project.datasets == {}
    assert message in str(project.broken[0].errors[0])


def test_the_service_has_defaults_and_one_document(folder: Folder) -> None:
    assert folder.load().service.concurrency == 3
    folder.write("resources/service/defs.yaml", "type: export_pipelines.Service\nattributes: {concurrency: 5}\n")
    project = folder.load()
    assert (project.service.concurrency, project.service_errors, project.broken) == (5, [], [])
    folder.write("resources/other/defs.yaml", "type: export_pipelines.Service\nattributes: {concurrency: 6}\n")
    assert "there are two documents of this type" in str(folder.load().service_errors)


@pytest.mark.parametrize("attributes", ["{concurrency: none}", "{store: shelf}", "{per_user: 5}"])
def test_a_broken_document_of_the_service_is_noted(folder: Folder, attributes: str) -> None:
    folder.write("resources/service/defs.yaml", f"type: export_pipelines.Service\nattributes: {attributes}\n")
    project = folder.load()
    assert len(project.service_errors) == 1
    assert [each.id for each in project.broken] == ["resources/service"]


# check and list


@pytest.fixture
def source(database: str) -> PostgresSource:
    run_each(database, "CREATE TABLE notes (id bigint, name text, at timestamptz, data jsonb, secret text)")
    return PostgresSource(database)


def checked(folder: Folder, source: PostgresSource, text: str, select: str | None = None) -> list[str]:
    """`line: field: message` of what `check` finds in a data set."""
    folder.write("assets/g/notes/defs.yaml", "")
    (folder.root / "assets/g/notes/defs.yaml").write_text(HEAD + text)
    if select is not None:
        folder.write("assets/g/notes/select.sql", select)
    loaded = load_tables(folder.root)
    assert loaded.broken == []
    dataset = loaded.datasets["g/notes"]
    errors = check_query(dataset) or check_dataset(source, dataset).errors
    return [f"{Path(error.file).name}:{error.line}: {error.field}: {error.message}" for error in errors]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  columns: [id, nmae]\n", "defs.yaml:4: columns: column 'nmae' of `columns` is not there"),
        ("  order_by: [x]\n", "defs.yaml:4: order_by.x: there is no column 'x'"),
        ("  column_descriptions: {x: y}\n", "defs.yaml:4: column_descriptions.x: there is no column 'x'"),
        ("  filters: {x: {}}\n", "defs.yaml:4: filters.x: filter 'x' compares column 'x', which is not there"),
        ("  filters:\n    at: {type: date}\n", "defs.yaml:5: filters.at: filter 'at' of type date does not fit column"),
        ("  filters: {id: {type: uuid}}\n", "defs.yaml:4: filters.id: filter 'id' of type uuid does not fit column"),
        ("  widen: {column: name, keys: [a]}\n", "defs.yaml:4: widen.column: column 'name' to widen is of type text"),
        ("  conversions: {x: text}\n", "defs.yaml:4: conversions: conversions name 'x'"),
        ("  exclude_columns: [x]\n", "defs.yaml:4: exclude_columns: notes has no columns ['x']"),
        ("  mask_columns: {name: 'md5('}\n", "defs.yaml:4: mask_columns.name: SQL does not parse"),
        (
            "  mask_columns: {name: 'md6(name)'}\n",
            "defs.yaml:3: table: query failed: function md6(text) does not exist",
        ),
    ],
)
def test_check_says_what_does_not_fit_the_source(
    folder: Folder, source: PostgresSource, text: str, message: str
) -> None:
    found = checked(folder, source, "  table: notes\n" + text)
    assert len(found) == 1
    assert found[0].startswith(message)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (
            "SELECT 1 AS id\nFROM notes WHERE at < %(window_end)s",
            "select.sql:2: : parameter %(window_end)s has no value",
        ),
        ("DELETE FROM notes", "select.sql:1: : select.sql must be one SELECT"),
        ("SELECT 1; SELECT 2", "select.sql:1: : 2 statements where one is expected"),
        ("SELECT id, id FROM notes", "defs.yaml:2: : columns ['id'] come more than once"),
        ("SELECT id FROM notse", 'defs.yaml:2: : query failed: relation "notse" does not exist'),
    ],
)
def test_check_says_what_is_wrong_with_a_query(
    folder: Folder, source: PostgresSource, select: str, message: str
) -> None:
    found = checked(folder, source, "  title: x\n", select)
    assert len(found) == 1
    assert found[0].startswith(message)


def test_a_good_data_set_is_told_with_its_columns(folder: Folder, source: PostgresSource) -> None:
    folder.write("assets/g/notes/defs.yaml", HEAD + "  table: notes\n  exclude_columns: [secret]\n")
    found = check_dataset(source, load_tables(folder.root).datasets["g/notes"])
    assert (found.errors, found.columns) == ([], 4)


def test_errors_of_a_table_that_is_a_data_set_stand_below_on_demand(folder: Folder, source: PostgresSource) -> None:
    text = EVENTS.replace("public.events", "notes").replace("id: {type: integer}", "idd: {type: integer}")
    folder.write("assets/g/notes/defs.yaml", text)
    errors = check_dataset(source, load_tables(folder.root).datasets["g/notes"]).errors
    assert [(error.line, error.field) for error in errors] == [(13, "on_demand.filters.idd")]


def test_check_asks_an_opensearch(folder: Folder) -> None:
    folder.write(
        "assets/g/logs/defs.yaml", HEAD + "  connection: search\n  index: logs\n  filters: {body: {}, at: {}}\n"
    )
    dataset = load_tables(folder.root).datasets["g/logs"].model_copy(update={"engine": "opensearch"})
    with opensearch_server() as search:
        search.index("logs", {"body": {"type": "text"}, "at": {"type": "date"}}, [{"body": "a"}])
        found = check_dataset(OpenSearchSource(search.url), dataset)
        assert [(error.line, error.message.partition(",")[0]) for error in found.errors] == [
            (5, "filter 'at' of type text does not fit column 'at' of type date"),
            (5, "field 'body' is an analysed text without a keyword"),
        ]
        assert found.rows == 1
        missing = dataset.model_copy(update={"spec": dataset.spec.model_copy(update={"index": "none"})})
        assert "no such index" in check_dataset(OpenSearchSource(search.url), missing).errors[0].message


def test_check_and_list_know_data_sets(folder: Folder, database: str, catalog_url: str) -> None:
    run_each(database, "CREATE TABLE notes (id bigint)")
    folder.write("assets/g/notes/defs.yaml", HEAD + "  table: notes\n  filters: {id: {type: integer}}\n")
    folder.write(
        "resources/service/defs.yaml",
        "type: export_pipelines.Service\nattributes: {smtp: {password: {env: NOWHERE_SET}}}\n",
    )
    variables = {
        "DATABASE_URL": database,
        "DAGSTER_PG_URL": catalog_url,
        "EXPORT_PATH": str(folder.root / "exports"),
        "ARCHIVE_URL": str(folder.root / "archive"),
    }
    run = CommandLine(folder.root, variables)
    listed = run("list", "--json")
    assert [each["dataset"] for each in listed.json["datasets"]] == ["g/notes"]
    assert "notes" in run("list", "notes").out
    checked = run("check")
    assert checked.code == 0, checked.err
    assert "0 tables, 1 data set" in checked.out
    assert "the variable NOWHERE_SET is not set" in checked.err
    run_each(database, "DROP TABLE notes")
    alone = run("check", "notes")
    assert alone.code == 1
    assert 'assets/g/notes/defs.yaml:3: table: query failed: relation "notes" does not exist' in alone.err


def test_check_says_that_nobody_can_ask_where_a_mail_is_required_and_none_is_sent(folder: Folder) -> None:
    folder.write("assets/g/notes/defs.yaml", HEAD + "  table: notes\n  mail: required\n")
    folder.write("assets/g/events/defs.yaml", EVENTS + "    mail: required\n")
    run = CommandLine(folder.root, {})
    checked = run("check", "--offline")
    assert checked.code == 1
    for place in ("assets/g/notes/defs.yaml:4: mail", "assets/g/events/defs.yaml:"):
        assert place in checked.err
    assert checked.err.count("the service has no mail server") == 2
    folder.write("resources/service/defs.yaml", "type: export_pipelines.Service\nattributes: {smtp: {}}\n")
    checked = run("check", "--offline")
    assert checked.code == 0, checked.err


# The demo


@pytest.fixture(scope="module")
def demo(postgres: Address) -> Iterator[str]:
    """A database with the demo's flights."""
    with new_database(postgres) as url:
        flights.load(url)
        yield url


@pytest.fixture
def kit(demo: str, one_catalog: str, tmp_path: Path) -> Iterator[RequestKit]:
    with request_kit(demo, one_catalog, tmp_path) as made:
        yield made


def shown(kit: RequestKit, name: str) -> None:
    """Let the kit be of a data set of the demo."""
    found = load_project(ROOT, automations=False).datasets[f"nycflights13/{name}"]
    kit.spec = found.spec.model_dump(exclude_unset=True)
    kit.select = found.select_sql


@pytest.mark.parametrize("name", ["flights", "planes", "airports", "delays_by_carrier"])
def test_the_demos_data_sets_fit_its_database(kit: RequestKit, name: str) -> None:
    found = load_project(ROOT, automations=False).datasets[f"nycflights13/{name}"]
    assert check_query(found) == []
    assert check_dataset(kit.source, found).errors == []


def test_flights_are_found_by_their_local_time(kit: RequestKit) -> None:
    shown(kit, "flights")
    asked = ("carrier=UA", "origin=EWR", "scheduled_departure>=2013-07-04", "scheduled_departure<2013-07-05")
    lines = kit.lines(*asked, columns=["year", "month", "day", "carrier"])
    assert set(lines) == {"2013,7,4,UA"}
    assert len(lines) == kit.count(1000, *asked)


def test_all_flights_are_too_many(kit: RequestKit) -> None:
    shown(kit, "flights")
    assert kit.count(80_000) == 80_001


@pytest.mark.parametrize("format", ["csv", "excel", "parquet"])
def test_delays_are_summed_up(kit: RequestKit, format: str) -> None:
    shown(kit, "delays_by_carrier")
    assert kit.answer("month=2", format=format).rows == 15


# What becomes of files


def test_expired_files_are_deleted_and_the_others_stay(kit: RequestKit) -> None:
    shown(kit, "delays_by_carrier")
    old, new = kit.answer("month=1"), kit.answer("month=2")
    expire(kit, old.id)
    assert expire_requests(kit.store, kit.requests) == [old.id]
    assert (kit.got(old).expired_at is None, kit.got(new).expired_at is None) == (False, True)
    assert [key.split("/")[2] for key in kit.files()] == [new.id]
    assert expire_requests(kit.store, kit.requests) == []


def expire(kit: RequestKit, request: str) -> None:
    kit.pool.rows("UPDATE request SET expires_at = now() WHERE id = %(id)s RETURNING id", {"id": request})


def test_a_running_download_keeps_its_file(kit: RequestKit) -> None:
    shown(kit, "delays_by_carrier")
    row = kit.answer("month=3")
    kit.pool.rows("INSERT INTO download (request_id, username) VALUES (%(id)s, 'ann') RETURNING id", {"id": row.id})
    expire(kit, row.id)
    assert row.id not in expire_requests(kit.store, kit.requests)
    kit.pool.rows("UPDATE download SET finished_at = now() WHERE request_id = %(id)s RETURNING id", {"id": row.id})
    assert row.id in expire_requests(kit.store, kit.requests)
    assert kit.files() == []


def test_what_an_attempt_left_is_swept_and_nothing_else(kit: RequestKit) -> None:
    shown(kit, "delays_by_carrier")
    row, live = kit.answer("month=4"), kit.ask("month=5")
    assert row.file is not None
    mine, folder = row.file.proof.key, f"requests/default/{row.id}"
    foreign = ["requests/default/somebodyelses/1-x.csv", f"requests/default/{live.id}/1-x.csv", "g/t/x.csv"]
    for key in (f"{folder}/0-x.csv.age", *foreign):
        kit.store.put(key, b"x")
    assert sweep_requests(kit.store, kit.requests) == []  # too young
    old = (1, 1)
    for path in (kit.folder / "exports").rglob("*.*"):
        os.utime(path, old)
    assert sweep_requests(kit.store, kit.requests) == [f"{folder}/0-x.csv.age"]
    assert sorted(info.key for info in kit.store.list()) == sorted([mine, *foreign])


def test_a_file_is_looked_for_where_it_was_written(kit: RequestKit, tmp_path: Path) -> None:
    shown(kit, "delays_by_carrier")
    row = kit.answer("month=6")
    other = open_store((tmp_path / "elsewhere").as_uri())
    assert row.file is not None
    assert store_of(row, other).head(row.file.proof.key) is not None
