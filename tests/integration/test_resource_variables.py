"""`${VAR}` inside texts of resources/, and what happens when it is not set."""

from __future__ import annotations

from pathlib import Path

import pytest

from export_pipelines.components.opening import initialized
from export_pipelines.components.project import Project
from tests.support.dagster_project import Folder, new_project

CONNECTION = """
type: export_pipelines.PostgresConnection
attributes:
  resource_key: warehouse
  url: postgresql://etl:${SHOP_PASSWORD}@${SHOP_HOST}:5432/shop
  application_name: etl on ${SHOP_HOST}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    root = tmp_path / "project"
    root.mkdir()
    folder = new_project(root)
    folder.write("resources/warehouse/defs.yaml", CONNECTION)
    return folder


def errors(project: Project) -> list[str]:
    return [str(error) for each in project.broken for error in each.errors]


def test_variables_within_texts_are_filled_in_and_no_password_is_in_the_configuration(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "s3cret")
    monkeypatch.setenv("SHOP_HOST", "db.example.org")
    project = folder.load()
    assert not errors(project)
    resource = project.resources["warehouse"]
    assert "s3cret" not in repr(resource) + str(vars(resource))
    made = initialized("warehouse", resource)
    assert made.url == "postgresql://etl:s3cret@db.example.org:5432/shop"
    assert made.parameters["application_name"] == "etl on db.example.org"


def test_a_variable_that_is_not_set_is_an_error_with_its_name_file_and_line(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_HOST", "db.example.org")
    monkeypatch.delenv("SHOP_PASSWORD", raising=False)
    (error,) = errors(folder.load())
    assert "resources/warehouse/defs.yaml:4" in error and "variable SHOP_PASSWORD is not set" in error


def test_a_password_beside_a_variable_is_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_HOST", "db.example.org")
    folder.write("resources/warehouse/defs.yaml", CONNECTION.replace("${SHOP_PASSWORD}", "word"))
    (error,) = errors(folder.load())
    assert "a password stands in the file" in error and ":word@" not in error
