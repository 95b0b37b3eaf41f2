"""The dialect in which a server is asked for records."""

from __future__ import annotations

from export_pipelines.specs.format import PLAIN, CsvSpec
from export_pipelines.specs.table import TableDefinition


def dialect_of(table: TableDefinition) -> CsvSpec:
    """That of the format, if a server writes it by itself; else the plain one, and a writer does the rest."""
    return table.spec.format.csv if table.spec.format.native else PLAIN
