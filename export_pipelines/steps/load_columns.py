"""From the columns of a file to those of its table: what is there, what is new or missing, and what that means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pglast import ast, parse_sql
from pglast.parser import ParseError
from pglast.visitors import Visitor

from export_pipelines.errors import TargetError
from export_pipelines.formats.parsing import other_delimiter
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.load import DriftPolicy, LoadColumn, LoadSpec, Style
from export_pipelines.specs.load_names import OWN_COLUMNS, STYLE_COLUMNS
from export_pipelines.sql import quote_identifier
from export_pipelines.targets.tables import TableColumn, columns_of, noted_as_data

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_WIDEST = 63
_TEXTS = re.compile(r"(text|character varying|character|bpchar|\"char\"|citext|name)\b.*")

# Excel counts days from here, of its wrong leap year 1900 on.
_DATE = r"""CASE WHEN {0} ~ '^\d{{1,6}}(\.\d+)?$' THEN DATE '1899-12-30' + floor({0}::numeric)::integer
 WHEN {0} ~ '^\d{{1,2}}\.\d{{1,2}}\.\d{{4}}' THEN to_date({0}, 'DD.MM.YYYY')
 WHEN {0} ~ '^\d{{1,2}}/\d{{1,2}}/\d{{4}}' THEN to_date({0}, 'MM/DD/YYYY') ELSE {0}::timestamp::date END"""


@dataclass(frozen=True)
class Filled:
    """A column of the table that the file fills."""

    column: TableColumn
    source: str
    """Column of the file that it comes from; empty if `expression` reads others."""
    expression: str
    """Over the file's columns as text."""
    plain: bool
    """Whether COPY would make the same value of the text."""
    hashed: bool = False

    @property
    def name(self) -> str:
        return self.column.name


@dataclass(frozen=True)
class Plan:
    """How a file becomes rows of the table."""

    header: tuple[str, ...]
    """The file's columns."""
    filled: tuple[Filled, ...]
    table: tuple[TableColumn, ...]
    """Columns of the table, with those that are new, without what loading adds."""
    new: tuple[TableColumn, ...] = ()
    """Columns that the table that is there has to get."""
    forbidden: tuple[str, ...] = ()
    """Columns of the file which must be empty: rows that have a value there go to quarantine."""

    @property
    def hashed(self) -> frozenset[int]:
        """Positions of the file's columns which are only known by their hash."""
        return frozenset(self.header.index(filled.source) for filled in self.filled if filled.hashed)

    @property
    def direct(self) -> tuple[str, ...] | None:
        """Columns of the table in the file's order, if COPY can fill them without a staging table; else None."""
        by_source = {filled.source: filled for filled in self.filled}
        if len(by_source) != len(self.filled) or set(by_source) != set(self.header):
            return None
        if not all(filled.plain for filled in self.filled):
            return None
        return tuple(by_source[name].name for name in self.header)


def file_columns(spec: LoadSpec, known: Sequence[str]) -> list[str] | None:
    """What a parser is told of the columns: those that JSON is searched for, and names of a CSV without a header."""
    if not spec.columns:
        return list(known) or None
    found: list[str] = []
    for name, column in spec.columns.items():
        wanted = list(_references(column.sql)) if column.sql else [column.source or name]
        found += [each for each in wanted if each not in found]
    return found


def _refuse_header(header: Sequence[str]) -> None:
    """Raises TargetError: names of a file are empty or too long. (None is there twice: parsers see to that.)"""
    if not header:
        raise TargetError("the file has no columns", hint="is it empty, or is `skip_rows` too great?")
    for number, name in enumerate(header, 1):
        if not name.strip():
            raise TargetError(f"column {number} of the file has no name", hint="see `header` and `skip_rows`")
        if len(name.encode()) > _WIDEST:
            raise TargetError(
                f"the name of column {number} of the file is longer than {_WIDEST} bytes: {name[:80]!r}…",
                hint="PostgreSQL has no longer names; shorten it in the file",
            )


def own_columns(spec: LoadSpec) -> list[TableColumn]:
    """The columns which loading adds for a definition, besides those of every table."""
    found = [TableColumn("raw_id", "bigint", own=True)] if spec.raw else []
    moments = [name for name in spec.reserved if name in STYLE_COLUMNS]
    return [*found, *(TableColumn(name, "timestamp with time zone", own=True) for name in moments)]


def given_columns(session: Session, relation: str) -> list[TableColumn]:
    """The columns of a table without those that loading added, be it in another style that the definition had."""
    data = noted_as_data(session, relation)
    found = [column for column in columns_of(session, relation) if column.name not in OWN_COLUMNS]
    return [column for column in found if column.name not in STYLE_COLUMNS or column.name in data]


def columns_to_add(session: Session, relation: str, spec: LoadSpec, new: Sequence[TableColumn]) -> list[TableColumn]:
    """What a table lacks that is changed in place: columns of loading's own, and the `new` ones of a plan.

    Raises:
        TargetError: a new one has the name of a column that loading added in another style, or the table has versions
            of rows or marks, of which the style knows nothing.
    """
    there = {column.name for column in columns_of(session, relation)}
    _refuse_left(session, relation, spec, there.intersection(STYLE_COLUMNS) - noted_as_data(session, relation))
    if left := [column.name for column in new if column.name in there]:
        raise TargetError(
            f"column {left[0]!r} of the file has the name of one that the table has from another style",
            hint=f"give it another name: {_other_name(left[0])}; or take that one away in a ver/NNN_*.sql",
        )
    return [column for column in [*own_columns(spec), *new] if column.name not in there]


def _refuse_left(session: Session, relation: str, spec: LoadSpec, own: set[str]) -> None:
    """Raises TargetError: by the key of a row, or by its period, all of its old versions would be changed; or a row
    that comes again would stay marked as removed."""
    changing = {"valid_to": (Style.UPSERT, Style.SNAPSHOT, Style.PARTITION), "removed_at": (Style.UPSERT,)}
    left = {"valid_to": ("old versions of rows", "history"), "removed_at": ("rows marked as removed", "snapshot")}
    for name, styles in changing.items():
        there = name in own - set(spec.reserved) and spec.style in styles
        if there and session.one(f"SELECT EXISTS (SELECT FROM {relation} WHERE {name} IS NOT NULL)")[0]:
            what, style = left[name]
            raise TargetError(
                f"the table has {what}, of style {style}, and style {spec.style.value} would change them",
                hint=f"keep them elsewhere, and take them away in a ver/NNN_*.sql: DELETE … WHERE {name} IS NOT NULL",
            )


def wanted_columns(spec: LoadSpec, types: dict[str, str]) -> list[TableColumn]:
    """Columns of the table as the definition has them; `types` by their name as the server spells them."""
    return [
        TableColumn(name, types[name], not column.nullable or name in spec.key) for name, column in spec.columns.items()
    ]


def make_plan(
    spec: LoadSpec, header: Sequence[str], wanted: Sequence[TableColumn], there: Sequence[TableColumn] | None
) -> Plan:
    """Settle what a file of this header does. `wanted` is what the definition has; `there` the table, None when it is
    made by this load.

    Raises:
        TargetError: the policy of the definition does not let file, definition and table differ in this way.
    """
    _refuse_header(header)
    _refuse_reserved(spec, wanted, there or ())
    if not wanted:
        return _untyped(spec, header, there)
    new = _compare(spec, wanted, there)
    missing = _missing(spec, header)
    filled = [_filled(column, spec.columns[column.name], header) for column in wanted if column.name not in missing]
    _refuse_missing(spec, wanted, missing, header)
    used = {name for column in spec.columns.values() for name in _uses(column)}
    used |= {name for name, column in spec.columns.items() if not column.sql and not column.source}
    table = [*(there or wanted), *new]
    return _with_extra(spec, header, [name for name in header if name not in used], filled, table, new, there)


def _refuse_reserved(spec: LoadSpec, wanted: Sequence[TableColumn], there: Sequence[TableColumn]) -> None:
    """Raises TargetError: the table that is copied, or the table that is there, has data in a column whose name loading
    needs itself in this style."""
    if copied := [column.name for column in wanted if column.name in spec.reserved]:
        raise TargetError(
            f"the table that is copied has a column {copied[0]!r}, and style {spec.style.value} adds one of that name",
            hint="other styles, such as replace or shadow, copy it as it is; or name all `columns`, and this one "
            f"otherwise: {_other_name(copied[0])}",
        )
    if data := [column.name for column in there if column.name in spec.reserved]:
        raise TargetError(
            f"the table has data in column {data[0]!r}, which loading would fill itself in style {spec.style.value}",
            hint="write a ver/NNN_*.sql with ALTER TABLE … RENAME COLUMN, or keep the style",
        )


def _other_name(name: str) -> str:
    return f"`columns: {{other_{name}: {{source: {name}}}}}`"


def _untyped(spec: LoadSpec, header: Sequence[str], there: Sequence[TableColumn] | None) -> Plan:
    """Of a definition without columns: the first file decides, and all is text."""
    known = [column.name for column in there] if there else _as_columns(spec, header)
    types = {column.name: column for column in there or ()}
    missing = [name for name in known if name not in header]
    if missing and spec.drift is DriftPolicy.FREEZE:
        raise _lacks(missing, header)
    columns = [types.get(name, TableColumn(name, "text", name in spec.key)) for name in known]
    if unknown := [name for name in spec.key if name not in known]:
        raise TargetError(f"the file has no columns {_listed(unknown)}, which are the key")
    if lost := [column.name for column in columns if column.not_null and column.name in missing]:
        raise _lacks(lost, header)
    filled = [_filled(column, LoadColumn(type=column.type), header) for column in columns if column.name in header]
    extra = [name for name in header if name not in known]
    return _with_extra(spec, header, extra, filled, columns, [], there)


def _with_extra(
    spec: LoadSpec,
    header: Sequence[str],
    extra: Sequence[str],
    filled: list[Filled],
    table: list[TableColumn],
    new: list[TableColumn],
    there: Sequence[TableColumn] | None,
) -> Plan:
    """What becomes of columns that the file has and nobody asked for."""
    if extra and spec.drift is DriftPolicy.FREEZE:
        raise TargetError(
            f"the file has columns that the definition does not know: {_listed(extra)}",
            hint="add them to `columns`, or let `drift` be evolve, discard_row or discard_value",
        )
    if extra and spec.drift is DriftPolicy.EVOLVE:
        known = {column.name: column for column in table}
        for name in _as_columns(spec, extra):
            column = known.get(name) or TableColumn(name, "text")
            filled.append(_filled(column, LoadColumn(type=column.type), header))
            if name not in known:
                table.append(column)
                new.append(column)
    forbidden = tuple(extra) if spec.drift is DriftPolicy.DISCARD_ROW else ()
    return Plan(tuple(header), tuple(filled), tuple(table), tuple(new) if there is not None else (), forbidden)


def _as_columns(spec: LoadSpec, names: Sequence[str]) -> list[str]:
    """Names of a file that become columns as they are. Raises TargetError: one cannot."""
    for name in names:
        if name in spec.reserved:
            raise TargetError(
                f"column {name!r} of the file has a name that loading uses itself",
                hint=f"give it another name: {_other_name(name)}",
            )
        if not _NAME.fullmatch(name):
            raise TargetError(
                f"column {name!r} of the file cannot be a column: lower-case letters, digits and _, a letter first",
                hint="name it in the definition: `columns: {plain_name: {source: " + repr(name) + "}}`",
            )
    return list(names)


def _compare(spec: LoadSpec, wanted: Sequence[TableColumn], there: Sequence[TableColumn] | None) -> list[TableColumn]:
    """Definition against table: the columns that are to be added to it."""
    if there is None:
        return []
    types = {column.name: column.type for column in there}
    if other := [c for c in wanted if types.get(c.name, c.type) != c.type]:
        said = ", ".join(f"{c.name} is {types[c.name]}, not {c.type}" for c in other)
        raise TargetError(
            f"the table differs from the definition: {said}",
            hint="write a ver/NNN_*.sql with ALTER TABLE … ALTER COLUMN … TYPE, or mend the definition",
        )
    new = [column for column in wanted if column.name not in types]
    if new and spec.drift is not DriftPolicy.EVOLVE:
        raise TargetError(
            f"the table lacks columns of the definition: {_listed([column.name for column in new])}",
            hint="write a ver/NNN_*.sql with ALTER TABLE … ADD COLUMN, or let `drift` be evolve",
        )
    # Rows that are there have no value for it.
    return [TableColumn(column.name, column.type) for column in new]


def _missing(spec: LoadSpec, header: Sequence[str]) -> set[str]:
    there = set(header)
    return {name for name, column in spec.columns.items() if not _sources(name, column) <= there}


def _refuse_missing(spec: LoadSpec, wanted: Sequence[TableColumn], missing: set[str], header: Sequence[str]) -> None:
    needed = [column.name for column in wanted if column.name in missing]
    if spec.drift is not DriftPolicy.FREEZE:
        needed = [column.name for column in wanted if column.name in missing and column.not_null]
    if needed:
        raise _lacks([name for each in needed for name in sorted(_sources(each, spec.columns[each]))], header)


def _lacks(names: Sequence[str], header: Sequence[str]) -> TargetError:
    sign = other_delimiter(header)
    return TargetError(
        f"the file lacks columns that the definition knows: {_listed([n for n in names if n not in header])}",
        hint=f"it has {_listed(header)}" + (f"; is its `file: {{delimiter: {sign!r}}}`?" if sign else ""),
    )


def _sources(name: str, column: LoadColumn) -> set[str]:
    return set(_references(column.sql)) if column.sql else {column.source or name}


def _uses(column: LoadColumn) -> Iterator[str]:
    if column.sql:
        yield from _references(column.sql)
    elif column.source:
        yield column.source


def _filled(column: TableColumn, spec: LoadColumn, header: Sequence[str]) -> Filled:
    if spec.sql:
        return Filled(column, "", f"({spec.sql}\n)", False)
    source = spec.source or column.name
    value = quote_identifier(source)
    if spec.transform == "date":
        return Filled(column, source, f"({_DATE.format(value)})::{column.type}", False)
    hashed = spec.transform == "hash"
    # A cast would cut off what is too long, an assignment refuses it.
    expression = value if hashed or _TEXTS.fullmatch(column.type) else f"{value}::{column.type}"
    return Filled(column, source, expression, True, hashed)


def _references(sql: str) -> list[str]:
    """Names of the columns which an expression reads. Raises TargetError: it is none."""
    try:
        tree = parse_sql(f"SELECT ({sql}\n)")
    except ParseError as error:
        raise TargetError(f"the expression {sql!r} is not SQL: {error.args[0]}") from error
    found: list[str] = []

    class Columns(Visitor):
        def visit_ColumnRef(self, ancestors: Any, node: ast.ColumnRef) -> None:
            last = (node.fields or (None,))[-1]
            if isinstance(last, ast.String) and last.sval and last.sval not in found:
                found.append(last.sval)

    Columns()(tree)
    return found


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more
