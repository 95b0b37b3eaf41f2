"""A small project that loads a folder of CSV files, with the Dagster side of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.dagster_project import Folder, new_project

RESOURCES = """
type: export_pipelines.PostgresConnection
attributes: {resource_key: warehouse, url: {env: WAREHOUSE_URL}}
---
type: export_pipelines.FilesystemStore
attributes: {resource_key: landing, path: {env: LANDING_PATH}}
"""

ORDERS = """
type: export_pipelines.LoadTable
attributes:
  source: {type: folder, path: {env: DROPS}, pattern: "*.csv", settle_seconds: 0}
  target: {table: shop.orders}
  columns:
    id: {type: bigint}
    name: {}
  quarantine: {max_rows: 1}
"""


def new_load_project(root: Path) -> Folder:
    """A project with `shop/orders`, which loads what lies in the folder of the variable DROPS."""
    folder = new_project(root)
    folder.write("resources/loading/defs.yaml", RESOURCES)
    folder.write("assets/shop/orders/defs.yaml", ORDERS)
    return folder


def load_folder(root: Path, source: str, catalog: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """The same in a folder that is made, with its variables set; the warehouse is in the source."""
    root.mkdir()
    for name, value in variables(root, source, catalog, source).items():
        monkeypatch.setenv(name, value)
    return new_load_project(root)


def variables(root: Path, source: str, catalog: str, warehouse: str) -> dict[str, str]:
    """The variables that it reads. The folders are made."""
    for name in ("drops", "landing"):
        (root / name).mkdir(exist_ok=True)
    return {
        "DATABASE_URL": source,
        "DAGSTER_PG_URL": catalog,
        "WAREHOUSE_URL": warehouse,
        "EXPORT_PATH": str(root / "exports"),
        "ARCHIVE_URL": (root / "archive").as_uri(),
        "LANDING_PATH": str(root / "landing"),
        "DROPS": str(root / "drops"),
        "DAGSTER_HOME": str(root / "home"),
    }
