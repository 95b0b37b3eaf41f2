"""CREATE TABLE from the columns of a manifest."""

from __future__ import annotations

from collections.abc import Sequence

from export_pipelines.manifest import Column
from export_pipelines.sql import quote_identifier


def create_table_sql(name: str, columns: Sequence[Column]) -> str:
    """The statement, one line a column, without keys, indexes and defaults. `name` is SQL already: quote it first.

    Types stand as the manifest has them, which is SQL as well: a restore asks the server whether each is a type, before
    it runs this.
    """
    body = ",\n".join(f"  {quote_identifier(column.name)} {column.type}" for column in columns)
    return f"CREATE TABLE {name} (\n{body}\n)"
