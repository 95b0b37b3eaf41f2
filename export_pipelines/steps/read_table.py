"""Reading a loaded table page by page, by the key `row_id`. The database itself writes JSON: of a thousand rows it
takes a few milliseconds, where rows as objects here would take some times that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from export_pipelines.errors import ExportPipelinesError, SourceError
from export_pipelines.sources.postgres import PostgresSource, Session
from export_pipelines.specs.load import TargetSpec
from export_pipelines.specs.load_names import OWN_COLUMNS
from export_pipelines.sql import quote_identifier
from export_pipelines.targets.names import TableNames

Orientation = Literal["tabular", "records"]

PAGE_TIMEOUT = "30s"
_BEFORE_ALL = -(1 << 63)
_GONE = ("42P01", "3F000")
"""No such table, no such schema."""

_COLUMNS = """
SELECT attname::text, format_type(atttypid, atttypmod), NOT attnotnull, coalesce(col_description(%s::regclass, (
    SELECT v.attnum FROM pg_attribute v WHERE v.attrelid = %s::regclass AND v.attname = a.attname)::int), '')
FROM pg_attribute a WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


class NotLoaded(ExportPipelinesError):
    """Nothing was loaded into the table yet."""


class VersionGone(ExportPipelinesError):
    """The version of a table that was read is not kept any more."""


@dataclass(frozen=True)
class TableColumn:
    """A column as readers get it. `type` as PostgreSQL's format_type() spells it."""

    name: str
    type: str
    nullable: bool
    description: str


@dataclass(frozen=True)
class Structure:
    """What a table is."""

    version: int
    rows: int | None
    """As the last load counted them."""
    columns: tuple[TableColumn, ...]


@dataclass(frozen=True)
class Page:
    """Some rows. `rows` is JSON without the outer brackets: arrays or objects, parted by commas."""

    version: int
    columns: tuple[str, ...]
    rows: str
    next_id: int | None
    """Key of the first row of the next page; None at the end."""


def structure(source: PostgresSource, target: TargetSpec) -> Structure:
    """Columns, version and rows of a table.

    Raises:
        NotLoaded: nothing was loaded yet. SourceError: the database is away.
    """
    names = TableNames.of(target)
    with source.session(statement_timeout=PAGE_TIMEOUT) as session:
        session.begin()
        number = current_version(session, names)
        columns = columns_read(session, names, number)
        rows = session.execute(
            "SELECT rows FROM operations.table_version WHERE target_table = %s AND version = %s", (names.table, number)
        )
        session.rollback()
    return Structure(number, int(rows[0][0]) if rows else None, columns)


def page(
    source: PostgresSource, target: TargetSpec, orientation: Orientation, first: int, rows: int, version: int | None
) -> Page:
    """At most `rows` rows whose key is `first` or greater, of a version, or else of that which is shown now.

    Raises:
        NotLoaded, VersionGone. SourceError: the database is away.
    """
    names = TableNames.of(target)
    with source.session(statement_timeout=PAGE_TIMEOUT) as session:
        session.begin()
        number = version or current_version(session, names)
        columns = columns_read(session, names, number)
        listed = tuple(column.name for column in columns)
        with kept_version(names, number):
            text, following = session.one(_page_sql(names, number, columns, orientation), (first, rows))
        session.rollback()
    return Page(number, listed, text or "", following)


def _page_sql(names: TableNames, number: int, columns: Sequence[TableColumn], orientation: Orientation) -> str:
    # Without an ORDER BY of its own the aggregate takes the rows as they come, which are in order: a sixth less time.
    table = names.version(number)
    source = f"SELECT t.row_id, {_json(columns, orientation)} AS j FROM {table} AS t {_joined(columns, orientation)}"
    return (
        f"WITH page AS ({source} WHERE t.row_id >= %s ORDER BY t.row_id LIMIT %s) "
        "SELECT (SELECT string_agg(j, ',') FROM page), (SELECT n.row_id FROM "
        f"{table} AS n WHERE n.row_id > (SELECT max(row_id) FROM page) ORDER BY n.row_id LIMIT 1)"
    )


def _json(columns: Sequence[TableColumn], orientation: Orientation) -> str:
    if not columns:
        return "'[]'" if orientation == "tabular" else "'{}'"
    if orientation == "records":
        return "row_to_json(r)::text"
    # Of json_build_array() a hundred arguments would be the most.
    values = ", ".join(f"to_json(t.{_quoted(column.name)})::text" for column in columns)
    return f"'[' || array_to_string(ARRAY[{values}], ',', 'null') || ']'"


def _joined(columns: Sequence[TableColumn], orientation: Orientation) -> str:
    if orientation == "tabular" or not columns:
        return ""
    return f"CROSS JOIN LATERAL (SELECT {', '.join(f't.{_quoted(column.name)}' for column in columns)}) AS r"


def json_lines(source: PostgresSource, target: TargetSpec, rows: int) -> Iterator[bytes]:
    """All rows of the version that is shown now, in one snapshot, as lines of JSON; some thousand rows at a time.

    Raises:
        NotLoaded: before the first piece. SourceError.
    """
    names = TableNames.of(target)
    with source.session() as session:
        session.begin()
        number = current_version(session, names)
        columns = columns_read(session, names, number)
        # A line break in a value of type json is white space: in its texts it is escaped.
        line = _json(columns, "records")
        if any(column.type == "json" for column in columns):
            line = f"translate({line}, chr(10) || chr(13), '  ')"
        statement = (
            f"SELECT string_agg(j || chr(10), ''), max(row_id) FROM (SELECT t.row_id, {line} AS j FROM "
            f"{names.version(number)} AS t {_joined(columns, 'records')} WHERE t.row_id > %s "
            "ORDER BY t.row_id LIMIT %s) AS page"
        )
        last: int | None = _BEFORE_ALL
        while True:
            with kept_version(names, number):
                text, last = session.one(statement, (last, rows))
            yield (text or "").encode()
            if last is None:
                return


def arrow_stream(source: PostgresSource, target: TargetSpec, rows: int) -> Iterator[bytes]:
    """The same as a stream of Arrow's IPC format: typed columns, a record batch for some thousand rows.

    Raises:
        NotLoaded: before the first piece. SourceError. FormatError: a value that Arrow's type cannot hold.
    """
    names = TableNames.of(target)
    with source.session() as session:
        session.begin()
        number = current_version(session, names)
        columns = columns_read(session, names, number)
        writer = _ArrowWriter(columns)
        arrays = ", ".join(f"array_agg({_quoted(column.name)}::text ORDER BY row_id)" for column in columns)
        chosen = ", ".join(_quoted(column.name) for column in columns)
        statement = (
            f"SELECT max(row_id), {arrays} FROM (SELECT row_id, {chosen} FROM {names.version(number)} "
            "WHERE row_id > %s ORDER BY row_id LIMIT %s) AS page"
        )
        last: int | None = _BEFORE_ALL
        while True:
            with kept_version(names, number):
                last, *values = session.one(statement, (last, rows))
            if last is None:
                break
            yield writer.take(values)
        yield writer.end()


class _ArrowWriter:
    def __init__(self, columns: Sequence[TableColumn]) -> None:
        import pyarrow as pa

        from export_pipelines.formats.arrow import arrow_type
        from export_pipelines.formats.fields import fields_of
        from export_pipelines.formats.sink import Sink
        from export_pipelines.manifest import Column
        from export_pipelines.specs.format import FormatName, FormatSpec

        self._fields = fields_of([Column(name=column.name, type=column.type) for column in columns], "postgresql")
        spec = FormatSpec(type=FormatName.PARQUET)
        self._types = [arrow_type(spec, field) for field in self._fields]
        described = zip(columns, self._types, strict=True)
        self._schema = pa.schema(
            [
                pa.field(c.name, kind, metadata={"source_type": c.type, "description": c.description})
                for c, kind in described
            ]
        )
        self._sink = Sink()
        self._writer: Any = pa.ipc.new_stream(self._sink, self._schema)

    def take(self, values: Sequence[Sequence[str | None]]) -> bytes:
        import pyarrow as pa

        from export_pipelines.formats.arrow import typed

        arrays = []
        for texts, field, kind in zip(values, self._fields, self._types, strict=True):
            column = typed(pa.array(texts, pa.string()), field, kind, "Arrow")[0]
            arrays.append(column.cast(kind) if column.type != kind else column)
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        return self._sink.taken()

    def end(self) -> bytes:
        self._writer.close()
        return self._sink.taken()


def current_version(session: Session, names: TableNames) -> int:
    """The version that is shown now."""
    try:
        found = session.execute(
            "SELECT current_version FROM operations.loaded_table WHERE target_table = %s", (names.table,)
        )
    except SourceError as error:
        if error.code in _GONE:
            raise NotLoaded(f"nothing was loaded into {names.table} yet") from error
        raise
    if not found:
        raise NotLoaded(f"nothing was loaded into {names.table} yet")
    return int(found[0][0])


@contextmanager
def kept_version(names: TableNames, number: int) -> Iterator[None]:
    """Raises VersionGone where the table of a version is not there."""
    try:
        yield
    except SourceError as error:
        if error.code in _GONE:
            raise VersionGone(f"version {number} of {names.table} is not kept any more") from error
        raise


def columns_read(session: Session, names: TableNames, number: int) -> tuple[TableColumn, ...]:
    """Raises VersionGone."""
    with kept_version(names, number):
        found = session.execute(_COLUMNS, (names.view, names.view, names.version(number)))
    return tuple(TableColumn(*row) for row in found if row[0] not in OWN_COLUMNS)


def _quoted(name: str) -> str:
    """A name in a statement with parameters."""
    return quote_identifier(name).replace("%", "%%")
