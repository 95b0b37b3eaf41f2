"""What is read of a partition, and how its rows will be known again.

MySQL's rows have no identity of their own. A row is known by its *content*: the BLAKE2b-128 of the CSV text of all its
columns, together with its key if the table has one. The server writes that text, as it writes the records of the file,
by one expression a column; where the file has all columns as they are, the record is the content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from export_pipelines.manifest import Column, IdentityProof
from export_pipelines.sources import mysql_inspect
from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.sources.mysql_inspect import BaseTable
from export_pipelines.sources.mysql_types import NOT_NULL, ResultColumn, field
from export_pipelines.sources.mysql_wire import Columns
from export_pipelines.specs.table import CsvSpec
from export_pipelines.sql_mysql import MysqlRelation, quote_identifier, quote_literal
from export_pipelines.steps.keys import PLAIN
from export_pipelines.steps.mysql.statements import MysqlStatements

_ALL = "18446744073709551615"
_EXTRA = "export_pipelines_"
EQUAL_ROWS = "has no key, and behind a join nobody can tell how many of its equal rows a file has"
"""Why rows without a key are not proved by the records of a join."""


@dataclass(frozen=True)
class Plan:
    """How a partition is read: `query` gives of each row its key (if `identity` has one), its content (unless it is
    `whole`), and its record."""

    query: str
    columns: tuple[Column, ...]
    identity: IdentityProof
    table: BaseTable | None = None
    whole: bool = False
    """Whether the record is the content."""


def plan(session: MysqlSession, parts: MysqlStatements, declared: tuple[str, ...]) -> Plan:
    """Decide, inside of the export's transaction; `declared` is the key of defs.yaml, or empty for the table's own.

    Rows are known by the row behind each record where the target of delete.sql stands in select.sql as a plain table;
    otherwise by key, if the file has the key's columns; otherwise nothing can be proved.
    """
    select = parts.select
    found = session.describe(select.query)
    if select.opaque:
        # GROUP BY … WITH ROLLUP gives NULLs where the server says that there are none.
        found = [replace(column, flags=column.flags & ~NOT_NULL) for column in found]
    columns = mysql_inspect.types(session, found)
    target = parts.delete.relation if parts.delete else select.relations[0] if len(select.relations) == 1 else None
    if target is None:
        return _unproved(parts, found, columns, select.opaque or "there is no delete.sql and no one table")
    table = mysql_inspect.base_table(session, target.schema, target.name)
    if table.unsound:
        return _unproved(parts, found, columns, table.unsound)
    key = declared or next(iter(table.keys), ())
    relation = relation_of(session, parts, table)
    if relation is not None and not key and select.repeats:
        return _unproved(parts, found, columns, f"{table.sql} {EQUAL_ROWS}")
    if relation is not None and (not declared or table.has_key(declared)):
        return _by_record(session, parts, found, columns, table, relation, key)
    reason = select.opaque or f"{table.sql} is no plain table of the FROM clause of select.sql"
    return _by_key(parts, found, columns, table, key, reason)


def relation_of(session: MysqlSession, parts: MysqlStatements, table: BaseTable) -> MysqlRelation | None:
    """The relation of select.sql that is the table."""
    for relation in parts.select.relations:
        if relation.name.lower() != table.name.lower():
            continue
        found = mysql_inspect.base_table(session, relation.schema, relation.name)
        if (found.schema, found.name) == (table.schema, table.name):
            return relation
    return None


def _unproved(parts: MysqlStatements, found: Sequence[ResultColumn], columns: tuple[Column, ...], reason: str) -> Plan:
    record = text_of(found, parts.csv)
    return Plan(_outer(parts, "", [record]), columns, IdentityProof(mode="none", reason=reason))


def _by_record(
    session: MysqlSession,
    parts: MysqlStatements,
    found: Sequence[ResultColumn],
    columns: tuple[Column, ...],
    table: BaseTable,
    relation: MysqlRelation,
    key: tuple[str, ...],
) -> Plan:
    """Key and content of the row ride along in the same query."""
    own = described(session, table)
    whole = _is_whole(found, table, parts.csv)
    carried = list(key) + ([] if whole else list(table.names))
    names = [f"{_EXTRA}{number}" for number in range(len(carried))]
    extra = ", ".join(
        f"{relation.qualifier}.{quote_identifier(column)} AS {quote_identifier(name)}"
        for column, name in zip(carried, names, strict=True)
    )
    fields = [own[column.lower()] for column in carried]
    heads = [text_of(fields[: len(key)], PLAIN, names[: len(key)])] if key else []
    if not whole:
        heads.append(text_of(fields[len(key) :], PLAIN, names[len(key) :]))
    identity = IdentityProof(mode="record", relation=table.sql, key=key)
    return Plan(_outer(parts, extra, [*heads, text_of(found, parts.csv)]), columns, identity, table, whole)


def _by_key(
    parts: MysqlStatements,
    found: Sequence[ResultColumn],
    columns: tuple[Column, ...],
    table: BaseTable,
    key: tuple[str, ...],
    reason: str,
) -> Plan:
    names = {column.name: column for column in found}
    missing = sorted(set(key) - names.keys())
    # A column of a derived table passes for one of a table of the same name.
    doubtful = table.name.lower() in parts.select.derived
    foreign = [name for name in key if name in names and (doubtful or not _is_of(names[name], table, name))]
    why = ""
    if parts.delete is None or not key:
        why = "and it has no key: declare `key`"
    elif missing:
        why = f"and its key columns {missing} are not in the file"
    elif foreign:
        why = f"and columns {foreign} of the file are not plainly those of {table.sql}"
    elif not table.has_key(key):
        why = f"and no unique index without NULLs says that {list(key)} is a key"
    if why:
        return _unproved(parts, found, columns, f"{reason}, {why}")
    identity = IdentityProof(mode="key", reason=reason, relation=table.sql, key=key)
    return Plan(_outer(parts, "", [text_of(found, parts.csv)]), columns, identity, table)


def _is_of(column: ResultColumn, table: BaseTable, name: str) -> bool:
    return (column.database, column.org_table, column.org_name) == (table.schema, table.name, name)


def _is_whole(found: Sequence[ResultColumn], table: BaseTable, csv: CsvSpec) -> bool:
    """Whether a record says all of its row, in the dialect of contents."""
    same = csv.model_copy(update={"header": False}) == PLAIN
    return same and len(found) == len(table.names) and all(map(_is_of, found, [table] * len(found), table.names))


def _outer(parts: MysqlStatements, extra: str, texts: Sequence[str]) -> str:
    """The query around the user's own. An ORDER BY in a derived table counts only with a LIMIT."""
    select = parts.select
    inner = select.with_columns(extra) if extra else select.query
    if select.ordered and not select.limited:
        inner += f"\nLIMIT {_ALL}"
    return f"SELECT {', '.join(texts)} FROM ({inner}\n) AS {_EXTRA}rows"


def described(session: MysqlSession, table: BaseTable) -> dict[str, ResultColumn]:
    """All columns of a table, invisible ones too, by their names in lower case."""
    names = ", ".join(map(quote_identifier, table.names))
    return {column.name.lower(): column for column in session.describe(f"SELECT {names} FROM {table.sql}")}


def text_of(columns: Sequence[ResultColumn], csv: CsvSpec, names: Sequence[str] = ()) -> str:
    """An SQL expression: the columns (under other names) as one record without its end. NULL if any part of it is: a
    CONCAT_WS would leave it out in silence."""
    given = names or [column.name for column in columns]
    fields = [field(column, quote_identifier(name), csv) for column, name in zip(columns, given, strict=True)]
    return f"CONCAT({f', {quote_literal(csv.delimiter)}, '.join(fields)})"


def sidecar_lines(columns: Columns, *, keyed: bool) -> list[bytes]:
    """Lines of a sidecar from keys, if there are any, and contents: the first columns."""
    digests = content_digests(columns[int(keyed)])
    # Half the time that a function call a row takes.
    return list(map(b",".join, zip(escaped_keys(columns[0]), digests, strict=True))) if keyed else digests


def content_digests(contents: Sequence[bytes]) -> list[bytes]:
    """The digests of contents, as a sidecar has them."""
    return [blake2b(content, digest_size=16).hexdigest().encode() for content in contents]


def escaped_keys(keys: Sequence[bytes]) -> Sequence[bytes]:
    """Keys without line ends, for lines of a sidecar."""
    every = b"".join(keys)
    if b"\n" not in every and b"\r" not in every and b"\\" not in every:
        return keys
    return [k.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r") for k in keys]


def unescaped(key: bytes) -> bytes:
    """The key that `escaped_keys` was given."""
    if b"\\" not in key:
        return key
    pieces = key.split(b"\\\\")
    return b"\\".join(piece.replace(b"\\n", b"\n").replace(b"\\r", b"\r") for piece in pieces)
