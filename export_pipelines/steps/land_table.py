"""Copies of another loaded table: all of its rows in one snapshot, with the digest that the copy must have. From its
database by COPY, or from its service page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from export_pipelines.errors import RequestError, SourceError
from export_pipelines.formats.parsing.base import encode
from export_pipelines.sources.database import postgres_reader
from export_pipelines.sources.files import Gone
from export_pipelines.sources.opensearch_json import Number, exact_dumps
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.sources.table_api import TableApi
from export_pipelines.sql import quote_identifier
from export_pipelines.steps.land_digests import Write
from export_pipelines.steps.land_rows import Pulled
from export_pipelines.steps.table_digest import Columns, TableDigest, measured, noted, view_columns

_TRIES = 5
"""How often the pages of a table are begun anew when it changes meanwhile."""


def pull_table(database: PostgresSource, relation: str, write: Write) -> Pulled:
    """All rows of a loaded table, `schema.name`, as CSV with its header.

    Raises:
        RequestError: it was never loaded. SourceError: the database failed.
    """
    schema, _, name = relation.partition(".")
    with postgres_reader(database) as reader:
        columns = view_columns(reader.session, schema, name)
        sql = f"{quote_identifier(schema)}.{quote_identifier(name)}"
        digest = measured(reader.session, sql, columns)
        pulled = Pulled(state={"mode": "full", **noted(columns, digest)})
        write(encode([column for column, _ in columns]))
        listed = ", ".join(quote_identifier(column) for column, _ in columns)
        pulled.rows = reader.records(f"SELECT {listed} FROM {sql}", {}, write)
    return pulled


def pull_pages(api: TableApi, before: str, begin: Callable[[], Write]) -> Pulled:
    """All rows of a table of a service, as CSV with its header. `before` is the digest that landed last, `begin` throws
    away what was written and gives where to write.

    All pages are of one version. If that is given up meanwhile, or rows of it are changed, the pages are begun anew.

    Raises:
        SourceError: the service refused or failed, or the table changes all the time.
    """
    for _ in range(_TRIES):
        said = api.digest()
        digest = TableDigest(said.rows, said.digest)
        if digest.text == before:
            return Pulled(changed=False)
        write = begin()
        with suppress(_Changed):
            rows = _write_pages(api, said.token, said.columns, write)
            again = _still(api, said.token)
            if again == digest and rows == digest.rows:
                return Pulled(rows, {"mode": "full", **noted(said.columns, digest)})
    raise SourceError(
        f"{api.name} was changed {_TRIES} times while its pages were read", hint="try again later", transient=True
    )


class _Changed(Exception):
    """The version that was read is not kept any more."""


def _still(api: TableApi, token: str) -> TableDigest:
    try:
        found = api.digest(token)
    except Gone as error:
        raise _gone(error) from error
    return TableDigest(found.rows, found.digest)


def _write_pages(api: TableApi, token: str, columns: Columns, write: Write) -> int:
    rows = 0
    names = [name for name, _ in columns]
    write(encode(names))
    try:
        for page in api.pages(token):
            places = _places(api, page.headers, names)
            for values in page.values:
                write(encode([_text(values[at], kind) for at, (_, kind) in zip(places, columns, strict=True)]))
            rows += len(page.values)
    except Gone as error:
        raise _gone(error) from error
    return rows


def _gone(error: Gone) -> Exception:
    return _Changed() if error.code == "410" else error


def _places(api: TableApi, headers: Sequence[str], names: Sequence[str]) -> list[int]:
    if lacking := [name for name in names if name not in headers]:
        raise SourceError(f"a page of {api.name} lacks the column {lacking[0]!r}", transient=True)
    return [list(headers).index(name) for name in names]


def _text(value: Any, kind: str) -> str | None:
    """A value of JSON as PostgreSQL reads it for a type."""
    if value is None:
        return None
    if kind in ("json", "jsonb"):
        return exact_dumps(value)
    if isinstance(value, list) and kind.endswith("[]"):
        return _array(value)
    if isinstance(value, dict | list):
        raise RequestError(f"values of type {kind} cannot be copied over HTTP", hint="copy from the database: `table`")
    return str(value) if not isinstance(value, bool) else "true" if value else "false"


def _array(values: Sequence[Any]) -> str:
    return "{" + ",".join(_elements(values)) + "}"


def _elements(values: Sequence[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, list):
            yield _array(value)
        elif value is None:
            yield "NULL"
        elif isinstance(value, Number | bool):
            yield str(value).lower() if isinstance(value, bool) else str(value)
        else:
            text = value if isinstance(value, str) else exact_dumps(value)
            escaped = text.replace("\\", "\\\\").replace('"', '\\"')
            yield f'"{escaped}"'
