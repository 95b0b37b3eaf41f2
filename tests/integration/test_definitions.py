"""Loading of a project: what is broken is shown and takes nothing down, and nothing is connected to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster.components.core.package_entry import get_package_objects_in_module
from dagster.components.scaffold.scaffold import ScaffoldRequest, get_scaffolder

import export_pipelines
from export_pipelines.components.project import RESOURCES, Project
from export_pipelines.components.types import template
from export_pipelines.specs.loader import load_tables
from tests.support.dagster_project import EVENTS, Folder, new_project


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A project with one good table; its databases do not answer."""
    for name in ("DATABASE_URL", "DAGSTER_PG_URL"):
        monkeypatch.setenv(name, "postgresql://nobody:secret-word@127.0.0.1:1/none")
    monkeypatch.setenv("EXPORT_PATH", str(tmp_path / "exports"))
    monkeypatch.setenv("ARCHIVE_URL", "s3://no-such-bucket/prefix")
    made = new_project(tmp_path)
    made.write("assets/demo/events/defs.yaml", EVENTS)
    return made


def broken(project: Project) -> dict[str, str]:
    """Ids of what is broken, with the errors."""
    return {each.id: "\n".join(map(str, each.errors)) for each in project.broken}


def spec_of(definitions: dg.Definitions, *path: str) -> dg.AssetSpec:
    return next(each for each in definitions.resolve_all_asset_specs() if each.key == dg.AssetKey(path))


def test_table_is_a_chain_of_four_assets(folder: Folder) -> None:
    definitions = folder.load().definitions()
    chain = [spec_of(definitions, "demo", f"events_{stage}") for stage in ("source", "export", "archive", "cleanup")]
    for before, after in pairwise(chain):
        assert [dep.asset_key for dep in after.deps] == [before.key]
    assert {spec.group_name for spec in chain} == {"demo"}
    assert chain[1].kinds == {"csv", "gzip"}
    assert chain[1].code_version and chain[1].code_version == chain[3].code_version
    dg.Definitions.validate_loadable(definitions)


def test_snapshot_without_a_delete_has_no_cleanup(folder: Folder) -> None:
    folder.write("assets/demo/names/defs.yaml", "type: export_pipelines.ExportTable\nattributes: {table: names}\n")
    keys = folder.load().definitions().resolve_all_asset_keys()
    assert dg.AssetKey(["demo", "names_archive"]) in keys
    assert dg.AssetKey(["demo", "names_cleanup"]) not in keys


def test_sql_owners_and_description_are_shown(folder: Folder) -> None:
    folder.write(
        "assets/demo/other/defs.yaml",
        """
        type: export_pipelines.ExportTable
        attributes: {owners: ["team:data"], tags: {domain: x}, description: What it is.}
        """,
    )
    folder.write("assets/demo/other/select.sql", "SELECT 1 AS one")
    spec = spec_of(folder.load().definitions(), "demo", "other_export")
    assert spec.owners == ["team:data"]
    assert spec.tags["domain"] == "x"
    assert "What it is." in (spec.description or "")
    assert "```sql\nSELECT 1 AS one\n```" in (spec.description or "")


def test_derived_statements_are_shown_as_sql(folder: Folder) -> None:
    definitions = folder.load().definitions()
    bounds = 'WHERE "at" >= %(window_start)s AND "at" < %(window_end)s\n```'
    for stage, verb in (("export", "SELECT *\nFROM"), ("cleanup", "DELETE FROM")):
        text = spec_of(definitions, "demo", f"events_{stage}").description or ""
        assert f"```sql\n{verb} public.events\n{bounds}" in text


def test_partitions_that_ended_are_listed_and_those_that_go_on_are_a_time_window(folder: Folder) -> None:
    """Dagster takes the newest partitions of a time window from today back, whatever its end: plots would be empty."""
    listed = spec_of(folder.load().definitions(), "demo", "events_export").partitions_def
    assert isinstance(listed, dg.StaticPartitionsDefinition)
    assert listed.get_partition_keys()[-1] == "2025-01-10"
    folder.write("assets/demo/events/defs.yaml", EVENTS.replace(", end: 2025-01-11", ""))
    going_on = spec_of(folder.load().definitions(), "demo", "events_export").partitions_def
    assert isinstance(going_on, dg.TimeWindowPartitionsDefinition)


def test_broken_folder_is_shown_with_file_and_line_and_takes_no_other_down(folder: Folder) -> None:
    folder.write(
        "assets/demo/bad/defs.yaml",
        """
        type: export_pipelines.ExportTable
        attributes:
          table: t
          partitons: {every: day}
          compression: rar
        """,
    )
    definitions = folder.load().definitions()
    dg.Definitions.validate_loadable(definitions)
    assert dg.AssetKey(["demo", "events_export"]) in definitions.resolve_all_asset_keys()
    spec = spec_of(definitions, "demo", "bad_broken")
    assert spec.group_name == "broken"
    assert spec.kinds == {"broken"}
    text = spec.description or ""
    assert "defs.yaml:4: partitons: unknown field" in text
    assert "did you mean 'partitions'?" in text
    assert "defs.yaml:5: compression" in text
    assert spec.metadata["line"] == 4


def test_what_dagster_refuses_breaks_its_own_table_only(folder: Folder) -> None:
    folder.write(
        "assets/demo/bad/defs.yaml",
        "type: export_pipelines.ExportTable\nattributes: {table: t, tags: {'a tag with blanks!': x}}\n",
    )
    project = folder.load()
    assert list(project.tables) == ["demo/events"]
    assert "demo/bad" in broken(project)


@pytest.mark.parametrize("kind", ["ExportSchedule", "UpstreamSensor"])
def test_automation_that_names_a_broken_table_is_left_out_with_it(folder: Folder, kind: str) -> None:
    folder.write("assets/demo/bad/defs.yaml", "type: export_pipelines.ExportTable\nattributes: {oops: 1}\n")
    more = "asset: a/b" if kind == "UpstreamSensor" else "cron: 0 1 * * *"
    document = "type: export_pipelines.{kind}\nattributes: {{name: {name}, tables: [{table}], {more}}}\n"
    folder.write("schedules/one/defs.yaml", document.format(kind=kind, name="one", table="demo/bad", more=more))
    folder.write("schedules/two/defs.yaml", document.format(kind=kind, name="two", table="demo/events", more=more))
    project = folder.load()
    assert [name for name, _ in project.automations] == ["two"]
    assert "schedules/one/defs.yaml:2: tables[0]: 'demo/bad' is broken itself" in broken(project)["schedules/one"]


def test_pattern_passes_over_broken_tables(folder: Folder) -> None:
    folder.write("assets/demo/bad/defs.yaml", "type: export_pipelines.ExportTable\nattributes: {oops: 1}\n")
    folder.write("schedules/all/defs.yaml", "type: export_pipelines.ChainSensor\nattributes: {name: all}\n")
    project = folder.load()
    assert broken(project).keys() == {"demo/bad"}
    (sensor,) = project.definitions().sensors or []
    assert isinstance(sensor, dg.SensorDefinition)
    assert {job.name for job in sensor.jobs} == {"demo__events_archive", "demo__events_cleanup"}


def test_table_with_an_unknown_connection_is_broken_and_says_what_there_is(folder: Folder) -> None:
    folder.write("assets/demo/events/defs.yaml", EVENTS + "  connection: sourse\n")
    errors = broken(folder.load())
    assert "there is no 'sourse' in resources/" in errors["demo/events"]
    assert "did you mean 'source'?" in errors["demo/events"]


def test_broken_resource_breaks_what_uses_it_and_nothing_else(folder: Folder) -> None:
    folder.write(
        "resources/second/defs.yaml",
        "type: export_pipelines.PostgresConnection\nattributes: {resource_key: second, urll: x}\n",
    )
    folder.write("assets/demo/uses/defs.yaml", EVENTS.replace("events", "uses") + "  connection: second\n")
    project = folder.load()
    assert list(project.tables) == ["demo/events"]
    assert set(broken(project)) == {"resources/second", "demo/uses"}


def test_password_in_a_file_is_refused_and_not_repeated(folder: Folder) -> None:
    folder.write(
        "resources/second/defs.yaml",
        """
        type: export_pipelines.PostgresConnection
        attributes: {resource_key: second, url: "postgresql://me:hunter-two@host/db"}
        """,
    )
    errors = broken(folder.load())["resources/second"]
    assert "a password stands in the file" in errors
    assert "hunter-two" not in errors


def test_loading_connects_to_nothing_and_keeps_secrets_out_of_definitions(folder: Folder) -> None:
    started = time.monotonic()
    repository = folder.load().definitions().get_repository_def()
    assert time.monotonic() - started < 30
    config = repository.get_top_level_resources()["source"].config_schema.default_value
    assert "secret-word" not in json.dumps(config)
    assert "DATABASE_URL" in json.dumps(config)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_component_of_another_library_works_in_resources(folder: Folder) -> None:
    folder.write(
        "resources/raw/defs.yaml",
        "type: dagster_aws.S3ResourceComponent\n"
        "attributes: {resource_key: raw_s3, credentials: {region_name: eu-north-1}}\n",
    )
    project = folder.load()
    assert broken(project) == {}
    assert "raw_s3" in (project.definitions().resources or {})


def test_each_location_of_a_workspace_reads_its_own_project(tmp_path: Path) -> None:
    # As a code server loads an entry of workspace.yaml with a working_directory: the current folder is another one.
    script = (
        "import sys; from dagster._core.code_pointer import load_python_module; "
        "module = load_python_module('export_pipelines.definitions', sys.argv[1]); "
        "print(len(module.defs.resolve_all_asset_keys()))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "EXPORT_PIPELINES_PROJECT"}
    environment["PYTHONPATH"] = str(Path(export_pipelines.__file__).parents[1])
    found = []
    for name, tables in (("one", 1), ("two", 2)):
        root = tmp_path / name
        root.mkdir()
        made = new_project(root)
        for number in range(tables):
            made.write(f"assets/demo/t{number}/defs.yaml", EVENTS.replace("public.events", f"public.t{number}"))
        done = subprocess.run(
            [sys.executable, "-c", script, str(root)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(int(done.stdout.split()[-1]))
    assert found == [4, 8]


def test_all_types_are_registered_for_dg() -> None:
    names = {name for name, _ in get_package_objects_in_module(export_pipelines)}
    assert {"ExportTable", "PostgresConnection", "Store", "ExportSchedule", "ChainSensor", "UpstreamSensor"} <= names
    for name in names:
        schema = getattr(export_pipelines, name).get_model_cls().model_json_schema()
        fields = schema["properties"].values()
        assert all(field.get("description") or "$ref" in field for field in fields if "default" not in field), name


def test_scaffold_writes_a_table_that_loads(tmp_path: Path) -> None:
    target = tmp_path / "assets" / "demo" / "fresh"
    kind = export_pipelines.ExportTable
    request = ScaffoldRequest(
        type_name="export_pipelines.ExportTable",
        target_path=target,
        scaffold_format="yaml",
        project_root=tmp_path,
        params=None,  # type: ignore[arg-type]
    )
    get_scaffolder(kind).scaffold(request)
    assert sorted(file.name for file in target.iterdir()) == ["defs.yaml", "delete.sql", "select.sql"]
    loaded = load_tables(tmp_path, None)
    assert loaded.errors == []
    assert list(loaded.tables) == ["demo/fresh"]


def test_every_template_is_valid(folder: Folder) -> None:
    kinds = [name for name, _ in get_package_objects_in_module(export_pipelines) if name != "ExportTable"]
    for name in kinds:
        place = "resources" if name in RESOURCES else "schedules"
        if name == "CatalogDatabase":
            continue  # the project has one
        text = template(f"{name}.yaml").replace("my_group/my_table", "demo/events")
        if name == "LoadTable":
            text = text.replace("connection: warehouse", "connection: source").replace(
                "landing: landing", "landing: exports"
            )
            place = "assets/demo"
        if name == "Transform":
            text = text.replace("connection: warehouse", "connection: source").replace("shop.totals", "shop.made")
            place = "assets/demo"
            folder.write(f"{place}/{name}/transform.sql", template("transform.sql"))
        if name == "DataSet":
            place = "assets/demo"
            folder.write(f"{place}/{name}/select.sql", template("DataSet.sql"))
        folder.write(f"{place}/{name}/defs.yaml", text)
    assert broken(folder.load()) == {}


def test_component_gives_what_the_factories_give(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_PIPELINES_PROJECT", str(folder.root))
    attributes = {"table": "public.events", "time_column": "at", "partitions": {"every": "day", "start": "2025-01-01"}}
    component = export_pipelines.ExportTable.from_attributes_dict(attributes=attributes)
    place = SimpleNamespace(path=folder.root / "assets/demo/events/defs.yaml")  # all of the context that is used
    made = component.build_defs(place)
    expected = folder.load().definitions().resolve_all_asset_keys()
    assert set(made.resolve_all_asset_keys()) == set(expected)
