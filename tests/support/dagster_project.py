"""A small project in a folder of a test's own, with the Dagster side of it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from export_pipelines.components.project import Project, load_project

RESOURCES = """
type: export_pipelines.PostgresConnection
attributes: {resource_key: source, url: {env: DATABASE_URL}, connect_timeout: 3}
---
type: export_pipelines.FilesystemStore
attributes: {resource_key: exports, path: {env: EXPORT_PATH}}
---
type: export_pipelines.Store
attributes: {resource_key: archive, url: {env: ARCHIVE_URL}}
---
type: export_pipelines.CatalogDatabase
attributes: {url: {env: DAGSTER_PG_URL}}
"""

EVENTS = """
type: export_pipelines.ExportTable
attributes:
  table: public.events
  time_column: at
  partitions: {every: day, start: 2025-01-01, end: 2025-01-11}
  cleanup: after_archive
"""


@dataclass(frozen=True)
class Folder:
    """The project's root, and how to add to it."""

    root: Path

    def write(self, name: str, text: str) -> Path:
        """Write a file below the root."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        return file

    def load(self) -> Project:
        """Read it."""
        return load_project(self.root)


def new_project(root: Path) -> Folder:
    """An empty project with resources that read the usual variables."""
    folder = Folder(root)
    folder.write("resources/defs.yaml", RESOURCES)
    folder.write("workspace.yaml", "load_from: []\n")
    (root / "assets").mkdir()
    return folder


def make_events(url: str, days: int = 10, rows: int = 20) -> None:
    """The table of EVENTS: so many rows on each of the first days of 2025."""
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz NOT NULL, note text)")
        cursor.execute(
            "INSERT INTO events SELECT d * 1000 + n, timestamptz '2025-01-01 00:00+00' + d * interval '1 day' "
            "+ n * interval '1 minute', 'row ' || n FROM generate_series(0, %s) d, generate_series(1, %s) n",
            (days - 1, rows),
        )
    connection.close()


def query(url: str, sql: str) -> list[tuple[object, ...]]:
    """Rows of a query."""
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()
