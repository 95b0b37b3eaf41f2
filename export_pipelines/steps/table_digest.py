"""The digest of a table's rows by which a copy is compared with what it was made of, in another database or another
server: the number of rows, and the sum of a 64-bit hash of the text of each, whatever their order.

It guards against accidents. Types may differ between the two as long as values have the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from export_pipelines.errors import RequestError
from export_pipelines.sources.postgres import PostgresSource, Session
from export_pipelines.specs.load import TargetSpec
from export_pipelines.specs.load_names import OWN_COLUMNS
from export_pipelines.sql import quote_identifier
from export_pipelines.steps.read_table import columns_read, current_version, kept_version
from export_pipelines.targets.names import TableNames
from export_pipelines.targets.tables import columns_of

_PORTABLE = re.compile(
    r"(smallint|integer|bigint|boolean|date|uuid|text|bytea|real|double precision|money|jsonb?|xml|inet|cidr|macaddr8?"
    r"|numeric(\(\d+,-?\d+\))?|character( varying)?(\(\d+\))?|bit( varying)?(\(\d+\))?|interval[a-z ()0-9]*"
    r"|time(stamp)?(\(\d\))? with(out)? time zone|(int[48]|num|date|ts|tstz)(multi)?range|point|tsvector)(\[\])*"
)
_JSON = ("json", "jsonb")

Columns = Sequence[tuple[str, str]]
"""Names and types of a table's columns."""


@dataclass(frozen=True)
class TableDigest:
    """What a table holds."""

    rows: int
    digest: str
    """A whole number of decimal digits, or `-` and such a one."""

    @property
    def text(self) -> str:
        """Both, as a manifest has them."""
        return f"{self.rows} {self.digest}"


def portable_type(kind: str) -> str:
    """The type of a column in another database: types that people made are text there."""
    return kind if _PORTABLE.fullmatch(kind) else "text"


def measured(session: Session, relation: str, columns: Columns) -> TableDigest:
    """The digest of a relation, which is SQL. Reads it once, in parallel where the server does.

    Text does not depend on the session: its settings are pinned.
    """
    values = ", ".join(_text(name, kind) for name, kind in columns)
    rows, total = session.one(
        f"SELECT count(*), coalesce(sum(hashtextextended(ROW({values})::text, 0)), 0)::text FROM {relation} AS t"
    )
    return TableDigest(int(rows), str(total))


def _text(name: str, kind: str) -> str:
    column = f"t.{quote_identifier(name)}"
    # White space does not count in JSON, and its null comes over HTTP as no value.
    return f"nullif({column}::jsonb, 'null')::text" if kind in _JSON else f"{column}::text"


def digest_of(source: PostgresSource, target: TargetSpec, version: int | None) -> tuple[int, Columns, TableDigest]:
    """Number, columns that readers get, and digest of a version of a loaded table, or of the one that is shown now.

    Raises:
        NotLoaded, VersionGone. SourceError: the database is away, or it takes too long.
    """
    names = TableNames.of(target)
    with source.session(statement_timeout="10min") as session:
        session.begin()
        number = version or current_version(session, names)
        columns = [(column.name, column.type) for column in columns_read(session, names, number)]
        with kept_version(names, number):
            found = measured(session, names.version(number), columns)
        session.rollback()
    return number, columns, found


# What a landing notes of its source


def noted(columns: Columns, digest: TableDigest) -> dict[str, str]:
    """What the manifest of a landed copy says of its source, as part of its `state`."""
    return {"columns": json.dumps(dict(columns)), "digest": digest.text}


def noted_columns(state: dict[str, str]) -> dict[str, str]:
    """Name → type of the columns that such a manifest says; none of other landings."""
    found: dict[str, str] = json.loads(state.get("columns", "{}"))
    return found


def view_columns(session: Session, schema: str, name: str) -> tuple[tuple[str, str], ...]:
    """Columns of what readers of a table see, without the numbers that loading gives: times of a history and marks of a
    snapshot are data for who copies it.

    Raises:
        RequestError: there is nothing of that name.
    """
    relation = f"{quote_identifier(schema)}.{quote_identifier(name)}"
    found = columns_of(session, relation)
    if not found:
        raise RequestError(f"{schema}.{name} has never been loaded, so there is nothing to copy", hint="load it first")
    return tuple((column.name, column.type) for column in found if column.name not in OWN_COLUMNS)
