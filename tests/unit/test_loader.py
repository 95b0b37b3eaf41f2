"""Tables are found, and what is wrong with one is told by file, line and field while the others load."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from export_pipelines.errors import SpecErrors
from export_pipelines.naming import file_key
from export_pipelines.specs.loader import Document, Loaded, load_documents, load_tables, validate
from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.table import CleanupMode
from export_pipelines.windows import window_of

HEAD = "type: export_pipelines.ExportTable\nattributes:\n"
GOOD = HEAD + "  table: public.t\n"
PARTED = GOOD + "  time_column: at\n  partitions: {every: day, start: 2025-01-01}\n"
SELECT = "COPY (SELECT * FROM agency a WHERE updated_at < %(export_boundary)s) TO STDOUT WITH CSV HEADER"
DELETE = "DELETE FROM agency WHERE updated_at < %(export_boundary)s"


def put(root: Path, path: str, text: str | bytes) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def put_task(root: Path, path: str) -> None:
    put(root, f"{path}/select.sql", SELECT)
    put(root, f"{path}/delete.sql", DELETE)


def told(loaded: Loaded) -> list[str]:
    """`line: field: message` of every error."""
    return [f"{e.line}: {e.field}: {e.message}" for e in loaded.errors]


def told_of(root: Path, text: str) -> list[str]:
    put(root, "assets/g/t/defs.yaml", text)
    return told(load_tables(root, None))


def test_a_folder_with_a_table_is_a_table_named_by_its_folders(tmp_path: Path) -> None:
    put(tmp_path, "assets/a/b/t/defs.yaml", PARTED)
    table = load_tables(tmp_path, None).tables["a/b/t"]
    assert (table.group, table.name, table.spec.table) == ("a/b", "t", "public.t")
    assert table.select_sql is None
    assert table.spec.cumulative is False


def test_a_project_without_assets_has_no_tables(tmp_path: Path) -> None:
    assert load_tables(tmp_path, None) == Loaded()


def test_a_table_right_below_assets_is_in_the_default_group(tmp_path: Path) -> None:
    put(tmp_path, "assets/t/defs.yaml", GOOD)
    assert list(load_tables(tmp_path, None).tables) == ["default/t"]


@pytest.mark.parametrize("name", ["two words", "tellimus-ülevaade", "注文", "v1.2", "it's", 'say "no"', "a%b"])
def test_names_of_folders_are_free(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"assets/{name}/{name}/defs.yaml", GOOD)
    assert list(load_tables(tmp_path, None).tables) == [f"{name}/{name}"]


def test_hidden_folders_and_caches_are_passed_over(tmp_path: Path) -> None:
    for name in (".git", "__pycache__", ".x/y"):
        put(tmp_path, f"assets/{name}/t/defs.yaml", GOOD)
    assert load_tables(tmp_path, None) == Loaded()


@pytest.mark.parametrize("where", ["assets/exports", "tasks"])
def test_a_task_of_an_older_service_runs_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setenv("EXPORT_TIMEZONE", "Europe/Tallinn")
    monkeypatch.setenv("DSL_START", "2024-12-30")
    put_task(tmp_path, f"{where}/agency")
    loaded = load_tables(tmp_path, tmp_path / "tasks" if where == "tasks" else None)
    table = loaded.tables["exports/agency"]
    assert table.select_sql == SELECT
    assert table.delete_sql == DELETE
    assert table.spec.cumulative is True
    assert table.spec.cleanup.mode is CleanupMode.AFTER_ARCHIVE
    assert table.spec.session_timezone == "Europe/Tallinn"
    window = window_of(table.spec.partitions, "2024-12-31")
    assert file_key(table, window, 1) == "agency-2025_01_01-12_00_00_AM.csv.gz"


def test_a_task_without_delete_sql_is_not_cleaned_up(tmp_path: Path) -> None:
    put(tmp_path, "agency/select.sql", SELECT)
    assert load_tables(tmp_path / "none", tmp_path).tables["exports/agency"].spec.cleanup.mode is CleanupMode.OFF


def test_a_task_with_a_bad_environment_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSL_START", "yesterday")
    put_task(tmp_path, "agency")
    error = load_tables(tmp_path / "none", tmp_path).errors[0]
    assert "DSL_START" in error.hint


def test_a_dsl_path_that_is_no_folder_is_told(tmp_path: Path) -> None:
    assert told(load_tables(tmp_path, tmp_path / "none")) == ["0: : DSL_PATH names no folder"]


def test_a_dsl_path_within_assets_shows_its_tasks_once(tmp_path: Path) -> None:
    put_task(tmp_path, "assets/kb/agency")
    loaded = load_tables(tmp_path, tmp_path / "assets/kb")
    assert list(loaded.tables) == ["kb/agency"]
    assert loaded.broken == []


def test_every_error_of_every_folder_is_told_at_once(tmp_path: Path) -> None:
    put(tmp_path, "assets/g/good/defs.yaml", GOOD)
    put(tmp_path, "assets/g/one/defs.yaml", GOOD + "  colour: red\n  cleanup:\n    mode: sometimes\n")
    put(tmp_path, "assets/g/two/defs.yaml", HEAD + "  table: [\n")
    put(tmp_path, "assets/g/two/select.sql", "")
    loaded = load_tables(tmp_path, None)
    assert list(loaded.tables) == ["g/good"]
    assert [(each.id, len(each.errors)) for each in loaded.broken] == [("g/one", 2), ("g/two", 2)]
    assert [error.line for error in loaded.broken[0].errors] == [6, 4]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "  partition:\n    every: day\n", "4: partition: unknown field"),
        (GOOD + "  time_column: at\n  partitions:\n    every: day\n", "5: partitions.start: is missing"),
        (
            GOOD + "  time_column: at\n  partitions:\n    every: day\n    strat: 2025-01-01\n    start: 2025-01-01\n",
            "7: partitions.strat: unknown field",
        ),
        (GOOD + "  compression: zip\n", "4: compression: should be 'gzip', 'zstd' or 'none'"),
        (GOOD + "  owners:\n  - team:a\n  - nobody\n", "6: owners[1]: is neither an e-mail address nor `team:name`"),
        (GOOD + "  tags:\n    a: b\n    c: d e\n", "6: tags.c: is not a tag that Dagster allows"),
        (GOOD + "  pool: a b\n", "4: pool: the name of a pool has no white space and is not empty"),
        (
            GOOD + "  depends_on: [a//b]\n",
            "4: depends_on[0]: an asset key is parts joined by `/`, none of them empty",
        ),
        (GOOD + "  file_name: '{tabel}'\n", "4: file_name: unknown field {tabel}"),
        (GOOD + "  file_name: /{table}\n", "4: file_name: '/{table}' is an absolute path"),
        (PARTED + "  file_name: '{window_end:%Y}'\n", "6: file_name: partitions 2025-01-01 and 2025-01-02 would"),
        (PARTED + "  file_name: '{window_end:%d}'\n", "6: file_name: partitions 2025-01-01 and 2025-02-01 would"),
        (GOOD + "  statement_timeout: 10\n", "4: statement_timeout: input should be a valid string, not a number"),
        (GOOD + "  statement_timeout: NULL\n", "4: statement_timeout: input should be a valid string, not null"),
        (PARTED.replace("every: day", "cron: 61 * * * *"), "5: partitions.cron: '61 * * * *' gives no partitions"),
        (PARTED.replace("2025-01-01", "2025-02-30"), "5: : is not valid YAML"),
        (PARTED + "  cumulative: true\n", "6: cumulative: derived statements are never cumulative"),
        (GOOD + "  key: [a\n", ": is not valid YAML"),
        (GOOD + "  table: public.u\n", "4: : key 'table' is given twice"),
        (HEAD + "  connection: x\n", "2: : neither `table` nor select.sql says what to export"),
        (HEAD.replace("ExportTable", "ExportTabel"), "1: type: unknown type 'export_pipelines.ExportTabel'"),
        (GOOD.replace("export_pipelines.ExportTable", "ExportTable"), "1: type: unknown type 'ExportTable'"),
        (GOOD + "---\n" + GOOD, "5: : a folder holds one table"),
        (GOOD + "extra: 1\n", "4: extra: unknown field 'extra'"),
        ("attributes: {}\n", "1: type: `type` is missing"),
        ("- a\n", "1: : a document is a mapping with `type` and `attributes`"),
        ("type: export_pipelines.ExportTable\nattributes: 5\n", "2: attributes: is not a mapping"),
        (GOOD + "  x: !!python/object/apply:os.system [ls]\n", "4: : is not valid YAML"),
        (GOOD + "  a: &a [*a]\n", "4: : is not valid YAML"),
        (GOOD + "  tags: {a: \a}\n", "4: : has a character that YAML does not allow"),
    ],
)
def test_an_error_names_its_line_and_field(tmp_path: Path, text: str, expected: str) -> None:
    found = told_of(tmp_path, text)
    assert any(expected in each for each in found), found


def test_a_misspelt_field_is_suggested(tmp_path: Path) -> None:
    put(tmp_path, "assets/g/t/defs.yaml", PARTED.replace("every", "evry"))
    errors = load_tables(tmp_path, None).errors
    assert [error.hint for error in errors if error.field == "partitions.evry"] == ["did you mean 'every'?"]


@pytest.mark.parametrize(
    ("kind", "meant"), [("LoadTabel", "LoadTable"), ("ExportTabel", "ExportTable"), ("Transfrom", "Transform")]
)
def test_of_misspelt_types_the_nearest_is_suggested(tmp_path: Path, kind: str, meant: str) -> None:
    put(tmp_path, "assets/g/t/defs.yaml", HEAD.replace("ExportTable", kind))
    (error,) = load_tables(tmp_path, None).errors
    assert error.hint == f"did you mean 'export_pipelines.{meant}'?"


def test_of_a_misspelt_kind_of_source_the_nearest_is_suggested(tmp_path: Path) -> None:
    text = "attributes: {source: {type: foldr, path: /srv}, target: {table: shop.orders}}\n"
    put(tmp_path, "assets/g/t/defs.yaml", "type: export_pipelines.LoadTable\n" + text)
    (error,) = load_tables(tmp_path, None).errors
    assert error.message.startswith("'type' should be one of 'folder', ") and error.hint == "did you mean 'folder'?"


def test_aliases_of_aliases_do_not_fill_the_memory(tmp_path: Path) -> None:
    bomb = "  a: &l0 [x]\n" + "".join(f"  b{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert "too large" in told_of(tmp_path, GOOD + bomb)[0]


def test_deep_nesting_is_an_error(tmp_path: Path) -> None:
    assert "deep" in told_of(tmp_path, GOOD + "  a: " + "[" * 5000 + "]" * 5000 + "\n")[0]


def test_an_anchor_and_a_merge_keep_their_lines(tmp_path: Path) -> None:
    text = GOOD + "  tags: &tags {a: b}\n  retries:\n    <<: {attempts: 3}\n    delay: 2\n"
    assert told_of(tmp_path, text) == ["7: retries.delay: unknown field"]


def test_a_document_of_another_type_is_not_ours(tmp_path: Path) -> None:
    other = "type: dagster_aws.S3ResourceComponent\nattributes: {a: 1}\nrequirements: {env: [X]}\n"
    put(tmp_path, "assets/g/other/defs.yaml", other)
    put(tmp_path, "assets/g/both/defs.yaml", other + "---\n" + GOOD)
    put(tmp_path, "assets/g/other/inner/defs.yaml", GOOD)
    loaded = load_tables(tmp_path, None)
    assert list(loaded.tables) == ["g/both", "g/other/inner"]
    assert loaded.broken == []


def test_a_table_within_the_folder_of_another_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "assets/g/t/defs.yaml", GOOD)
    put(tmp_path, "assets/g/t/x/u/defs.yaml", GOOD)
    loaded = load_tables(tmp_path, None)
    assert list(loaded.tables) == ["g/t"]
    assert told(loaded) == ["0: : lies in the folder of another table"]


def test_a_broken_file_of_a_group_leaves_its_tables_alone(tmp_path: Path) -> None:
    put(tmp_path, "assets/g/defs.yaml", "type: [")
    put(tmp_path, "assets/g/t/defs.yaml", GOOD)
    assert list(load_tables(tmp_path, None).tables) == ["g/t"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0: : is empty"),
        (b" \n\t", "0: : is empty"),
        (b"select 1\n -- \xff", "2: : is not UTF-8"),
        (b"select\n\n\0", "3: : has a NUL character"),
    ],
)
def test_a_sql_file_that_is_no_text_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    put(tmp_path, "assets/g/t/defs.yaml", GOOD)
    put(tmp_path, "assets/g/t/delete.sql", content)
    assert told(load_tables(tmp_path, None)) == [message]


def test_a_byte_order_mark_is_not_part_of_the_statement(tmp_path: Path) -> None:
    put(tmp_path, "assets/g/t/select.sql", b"\xef\xbb\xbfselect 1")
    put(tmp_path, "assets/g/u/defs.yaml", b"\xef\xbb\xbf" + GOOD.encode())
    loaded = load_tables(tmp_path, None)
    assert loaded.tables["g/t"].select_sql == "select 1"
    assert "g/u" in loaded.tables


def test_a_pipe_or_a_dangling_link_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "assets/g/t").mkdir(parents=True)
    os.mkfifo(tmp_path / "assets/g/t/select.sql")
    (tmp_path / "assets/g/t/delete.sql").symlink_to("nowhere")
    assert told(load_tables(tmp_path, None)) == ["0: : is not a regular file"] * 2


def test_delete_sql_alone_exports_nothing(tmp_path: Path) -> None:
    put(tmp_path, "assets/g/t/delete.sql", DELETE)
    assert told(load_tables(tmp_path, None)) == ["0: : neither `table` nor select.sql says what to export"]


def test_a_cleanup_without_a_statement_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "assets/g/t/defs.yaml", HEAD + "  cleanup:\n    mode: after_archive\n")
    put(tmp_path, "assets/g/t/select.sql", SELECT)
    assert told(load_tables(tmp_path, None)) == ["4: cleanup.mode: neither `table` nor delete.sql says what to delete"]


def test_masks_on_a_written_select_are_an_error(tmp_path: Path) -> None:
    put(tmp_path, "assets/g/t/defs.yaml", GOOD + "  mask_columns: {a: md5(a)}\n")
    put(tmp_path, "assets/g/t/select.sql", "select 1")
    assert "4: mask_columns: works on derived statements only" in told(load_tables(tmp_path, None))[0]


@pytest.mark.parametrize(
    ("where", "cumulative"),
    [
        ("x < %(export_boundary)s", True),
        ("x < %(window_end)s /* not %(window_start)s */ -- nor %(partition_key)s", True),
        ("x >= %(window_start)s and x < %(window_end)s", False),
        ("x = %(partition_key)s", False),
        ("x = '--' and y >= %(window_start)s", False),
    ],
)
def test_a_select_that_is_not_bounded_from_below_is_cumulative(tmp_path: Path, where: str, cumulative: bool) -> None:
    put(tmp_path, "assets/g/t/defs.yaml", HEAD + "  partitions: {every: day, start: 2025-01-01}\n")
    put(tmp_path, "assets/g/t/select.sql", " ".join(("select * from t where", where)))
    assert load_tables(tmp_path, None).tables["g/t"].spec.cumulative is cumulative


def test_loops_of_links_end_and_a_linked_folder_is_read_once(tmp_path: Path) -> None:
    put(tmp_path, "assets/g/t/defs.yaml", GOOD)
    put(tmp_path, "elsewhere/u/defs.yaml", GOOD)
    (tmp_path / "assets/g/loop").symlink_to(tmp_path / "assets")
    (tmp_path / "assets/a").symlink_to(tmp_path / "assets/g")
    (tmp_path / "assets/self").symlink_to("self")
    (tmp_path / "assets/outside").symlink_to(tmp_path / "elsewhere")
    loaded = load_tables(tmp_path, None)
    assert list(loaded.tables) == ["g/t", "outside/u"]
    assert loaded.broken == []


def test_two_tables_of_one_id_are_both_broken_and_name_each_other(tmp_path: Path) -> None:
    put_task(tmp_path, "assets/exports/agency")
    put_task(tmp_path, "tasks/agency")
    put_task(tmp_path, "tasks/other")
    loaded = load_tables(tmp_path, tmp_path / "tasks")
    assert list(loaded.tables) == ["exports/other"]
    first, second = (error.message for error in loaded.errors)
    assert str(tmp_path / "tasks/agency") in first
    assert str(tmp_path / "assets/exports/agency") in second


@pytest.mark.parametrize(("one", "other"), [("straße", "STRASSE"), ("caf\u00e9", "cafe\u0301"), ("T", "t")])
def test_ids_that_a_file_system_may_mix_up_are_errors(tmp_path: Path, one: str, other: str) -> None:
    tasks = tmp_path / "tasks"
    put(tmp_path, f"assets/exports/{one}/defs.yaml", GOOD)
    put(tasks, f"{other}/defs.yaml", GOOD)
    loaded = load_tables(tmp_path, tasks)
    assert loaded.tables == {}
    assert len(loaded.broken) == 2


def test_tables_that_would_write_the_same_file_names_are_kept_apart(tmp_path: Path) -> None:
    put_task(tmp_path, "assets/a/agency")
    put_task(tmp_path, "assets/b/agency")
    loaded = load_tables(tmp_path, None)
    assert list(loaded.tables) == ["a/agency"]
    assert "same names as 'a/agency'" in loaded.errors[0].message


def test_the_version_changes_with_any_definition_file_and_nothing_else(tmp_path: Path) -> None:
    def version() -> str:
        return load_tables(tmp_path, None).tables["g/t"].version

    put(tmp_path, "assets/g/t/defs.yaml", GOOD)
    versions = [version()]
    put(tmp_path, "assets/g/t/README.md", "x")
    assert version() == versions[0]
    for name in ("defs.yaml", "select.sql", "delete.sql"):
        put(tmp_path, f"assets/g/t/{name}", GOOD + "# x\n")
        versions.append(version())
    assert len(set(versions)) == 4


class Login(SpecModel):
    url: str
    retries: int = 2


class Connections(SpecModel):
    items: tuple[Login, ...]
    either: Login | int | None = None


def test_other_models_use_the_same_reader(tmp_path: Path) -> None:
    file = put(
        tmp_path,
        "r.yaml",
        "# c\ntype: export_pipelines.Connections\nattributes:\n  items:\n  - url: x\n    retry: 1\n  - {}\n",
    )
    (document,) = load_documents(file)
    assert document.type == "export_pipelines.Connections"
    assert document.line == 2
    errors = validate(Connections, document)
    assert isinstance(errors, list)
    assert [(e.line, e.field, e.message) for e in errors] == [
        (6, "items[0].retry", "unknown field"),
        (7, "items[1].url", "is missing"),
    ]
    assert errors[0].hint == "did you mean 'retries'?"


def test_a_member_of_a_union_is_not_part_of_the_field(tmp_path: Path) -> None:
    file = put(tmp_path, "r.yaml", "type: x.Y\nattributes:\n  items: []\n  either:\n    ulr: x\n")
    (document,) = load_documents(file)
    errors = validate(Connections, document)
    assert isinstance(errors, list)
    assert ("either.ulr", 5, "did you mean 'url'?") in [(e.field, e.line, e.hint) for e in errors]


def test_a_wrong_value_is_not_repeated_in_the_message() -> None:
    class Secret(BaseModel):
        port: int

    document = Document("x.Y", {"port": "hunter2"}, 1, Path("f.yaml"))
    errors = validate(Secret, document)
    assert isinstance(errors, list)
    assert "hunter2" not in str(errors[0])


def test_reading_a_file_with_several_documents_gives_each_its_line(tmp_path: Path) -> None:
    file = put(tmp_path, "r.yaml", "type: a.B\n---\n---\ntype: c.D\nattributes:\n  x: 1\n")
    documents = load_documents(file)
    assert [(d.type, d.line) for d in documents] == [("a.B", 1), ("c.D", 4)]
    assert documents[1].lines[("x",)] == 6


def test_all_errors_of_a_yaml_file_are_one_exception(tmp_path: Path) -> None:
    with pytest.raises(SpecErrors) as raised:
        load_documents(put(tmp_path, "r.yaml", "type: a.B\ntype: a.B\nx: 1\nx: 2\n"))
    assert len(raised.value.errors) == 2
