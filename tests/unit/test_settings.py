"""Each variable replaces just its own part, and nothing secret is shown."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export_pipelines.errors import RequestError
from export_pipelines.local.project import write_dagster_yaml
from export_pipelines.settings import apply, find_root, load_settings, with_storage_defaults

BOTH = {"DATABASE_URL": "postgresql://u:geheim@db/app", "DAGSTER_PG_URL": "postgresql://u:geheim@db/dagster"}


def test_nothing_set_means_everything_in_the_project(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    assert settings.export_path == tmp_path / ".local" / "exports"
    assert settings.archive_url == (tmp_path / ".local" / "archive").as_uri()
    assert settings.dagster_home == tmp_path / ".local" / "dagster"
    assert (settings.database_url, settings.dagster_pg_url, settings.dsl_path) == (None, None, None)
    assert settings.embedded_source
    assert settings.embedded_dagster


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("DATABASE_URL", "postgresql://u@h/d", "database_url"),
        ("DAGSTER_PG_URL", "postgresql://u@h/d", "dagster_pg_url"),
        ("EXPORT_PATH", "/elsewhere", "export_path"),
        ("DSL_PATH", "/elsewhere", "dsl_path"),
        ("ARCHIVE_URL", "s3://bucket/prefix", "archive_url"),
        ("DAGSTER_HOME", "/elsewhere", "dagster_home"),
    ],
)
def test_each_variable_replaces_just_its_own_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str
) -> None:
    before = load_settings(tmp_path)
    monkeypatch.setenv(name, value)
    after = load_settings(tmp_path)
    flags = {"DATABASE_URL": {"embedded_source"}, "DAGSTER_PG_URL": {"embedded_dagster"}}.get(name, set())
    assert {key for key in vars(before) if getattr(before, key) != getattr(after, key)} == {field} | flags
    assert str(getattr(after, field)).startswith(value)


def test_environment_wins_over_the_file_and_an_empty_value_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("EXPORT_PATH=from-file\nDSL_PATH=tasks\nARCHIVE_URL=\nAWS_ENDPOINT_URL=http://s3\n")
    monkeypatch.setenv("EXPORT_PATH", "from-environment")
    settings = load_settings(tmp_path)
    assert settings.export_path == tmp_path / "from-environment"
    assert settings.dsl_path == tmp_path / "tasks"
    assert settings.archive_url == (tmp_path / ".local" / "archive").as_uri()
    apply(settings)
    assert os.environ["AWS_ENDPOINT_URL"] == "http://s3"
    assert os.environ["DSL_PATH"] == str(tmp_path / "tasks")


def test_project_does_not_take_what_was_put_into_the_environment_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        root.mkdir()
        (root / ".env").write_text(f"DATABASE_URL=postgresql://u@{root.name}/d\n")
    monkeypatch.setenv("DSL_PATH", "/for/all")
    monkeypatch.setenv("DAGSTER_PG_URL", BOTH["DAGSTER_PG_URL"])
    apply(load_settings(first))
    apply(load_settings(first))
    found = load_settings(second)
    assert found.database_url == "postgresql://u@second/d"
    assert found.export_path == second / ".local" / "exports"
    assert found.dsl_path == Path("/for/all")
    assert found.dagster_home == first / ".local" / "dagster"
    assert load_settings(first).database_url == "postgresql://u@first/d"


def test_plain_folder_is_taken_as_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVE_URL", "my archive")
    assert load_settings(tmp_path).archive_url == (tmp_path / "my archive").as_uri()


@pytest.mark.parametrize("url", ["mysql://u:geheim@h/d", "nonsense geheim", "postgresql://u:geheim@h:port/d"])
def test_url_that_cannot_be_used_is_refused_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(RequestError, match="DATABASE_URL") as refused:
        load_settings(tmp_path)
    assert "geheim" not in str(refused.value)


def test_passwords_are_not_in_what_is_printed_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BOTH.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".env").write_text("AWS_SECRET_ACCESS_KEY=geheim\n")
    assert "geheim" not in repr(load_settings(tmp_path))


def test_unknown_kind_of_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVE_URL", "ftp://host/folder")
    with pytest.raises(RequestError, match="ftp"):
        load_settings(tmp_path)


def test_both_urls_given_import_nothing_embedded(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from export_pipelines.settings import load_settings;"
        "load_settings(Path(sys.argv[1]));"
        "print([name for name in sys.modules if 'export_pipelines.local' in name or 'embedded' in name])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, **BOTH},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"


@given(password=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
def test_storage_defaults_leave_the_rest_of_a_url_as_it_is(password: str) -> None:
    from urllib.parse import quote, unquote, urlsplit

    url = f"postgresql://user:{quote(password, safe='')}@host:5432/base?sslmode=require&connect_timeout=3"
    found = with_storage_defaults(url)
    assert found is not None
    assert unquote(urlsplit(found).password or "") == password
    assert "connect_timeout=3" in found
    assert "sslmode=require" in found
    assert "keepalives_idle=30" in found
    assert with_storage_defaults(found) == found


def test_project_is_found_from_a_folder_inside_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "workspace.yaml").touch()
    (tmp_path / "assets" / "group").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "assets" / "group")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "assets"), *sys.path])
    assert find_root() == tmp_path.resolve()


def test_working_directory_of_a_code_location_comes_before_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "meant"):
        (tmp_path / name / "assets").mkdir(parents=True)
        (tmp_path / name / "workspace.yaml").touch()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "meant"), *sys.path])
    assert find_root() == tmp_path / "meant"


def test_current_project_comes_before_the_one_that_the_script_is_installed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "other"):
        (tmp_path / name / "assets").mkdir(parents=True)
        (tmp_path / name / "workspace.yaml").touch()
    (tmp_path / "other" / "bin").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "other" / "bin"), *sys.path])
    assert find_root() == tmp_path / "here"


def test_folder_outside_of_any_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(RequestError, match="not in a project"):
        find_root()


def test_own_dagster_yaml_is_kept_and_ours_is_renewed(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    settings = load_settings(tmp_path)
    path = write_dagster_yaml(settings)
    ours = path.read_text()
    path.write_text(ours + "# older\n")
    write_dagster_yaml(settings)
    assert path.read_text() == ours
    path.write_text("telemetry: {enabled: false}\n")
    write_dagster_yaml(settings)
    assert path.read_text() == "telemetry: {enabled: false}\n"
    assert stat.S_ISREG(path.stat().st_mode)
