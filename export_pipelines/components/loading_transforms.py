"""Transforms, as far as they depend on what else is in the project: who makes the tables that their SQL reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from export_pipelines.components.automation import valid_cron
from export_pipelines.errors import SpecError
from export_pipelines.specs.documents import load_documents
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.specs.table import TableDefinition
from export_pipelines.specs.transform import TransformDefinition
from export_pipelines.steps.transform_sql import TransformSql, read_transform

_COMPANIONS = ("__raw", "__quarantine")
"""Tables beside a loaded one, which its load makes, too."""


@dataclass
class Makers:
    """Who makes which table of which connection: ids of folders."""

    found: dict[tuple[str, str], str] = field(default_factory=dict)
    read: dict[tuple[str, str], str] = field(default_factory=dict)
    """Ids of tables that are exported, by what their export reads."""

    def add_loads(self, loads: Iterable[LoadDefinition]) -> None:
        for load in loads:
            for end in ("", *_COMPANIONS):
                self.found[load.spec.target.connection, load.spec.target.table + end] = load.id

    def add_transform(self, transform: TransformDefinition, sql: TransformSql) -> None:
        connection = transform.spec.target.connection
        for table in (transform.spec.target.table, *sql.writes):
            if table:
                self.found.setdefault((connection, table), transform.id)

    def add_tables(self, tables: Iterable[TableDefinition]) -> None:
        for table in tables:
            if table.spec.table:
                self.read.setdefault((table.spec.connection, table.spec.table), table.id)

    def of(self, transform: TransformDefinition, sql: TransformSql) -> tuple[list[str], list[str], list[str]]:
        """Ids of what makes the tables that it reads, ids of exports that read them too, and tables of nobody."""
        makers, exported, unknown = [], [], []
        for table in sql.reads:
            key = (transform.spec.target.connection, table)
            if key in self.found:
                makers.append(self.found[key])
            elif key in self.read:
                exported.append(self.read[key])
            else:
                unknown.append(table)
        return [each for each in dict.fromkeys(makers) if each != transform.id], exported, unknown


def parsed(transforms: Mapping[str, TransformDefinition]) -> tuple[dict[str, TransformSql], dict[str, SpecError]]:
    """The SQL of each, and what is wrong with it or with its cron."""
    found: dict[str, TransformSql] = {}
    errors: dict[str, SpecError] = {}
    for name, each in transforms.items():
        try:
            found[name] = read_transform(each)
            _check_cron(each)
        except SpecError as error:
            errors[name] = error
    return found, errors


def _check_cron(transform: TransformDefinition) -> None:
    if transform.spec.cron is None:
        return
    try:
        valid_cron(transform.spec.cron)
    except ValueError as error:
        raise load_documents(transform.folder / "defs.yaml")[0].error(str(error), ("cron",)) from error
