"""The statements of a table: named parameters, one statement a file, what may ride along.

PostgreSQL's own parser (libpg_query, through pglast) decides what a statement is; its text is never printed anew, only
cut at token borders, so that what runs is what was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pglast import ast, parse_sql
from pglast.parser import ParseError, scan
from pglast.visitors import Visitor
from pydantic import ValidationError

from export_pipelines.errors import SpecError
from export_pipelines.specs.table import CsvSpec
from export_pipelines.windows import Window

PARAMETERS = ("window_start", "window_end", "export_boundary", "partition_key")
_PARAMETER = re.compile(r"%\((\w*)\)s|%%")
_WRITES = (ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt)


def quote_identifier(name: str) -> str:
    """The name as an SQL identifier, always quoted."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(value: str) -> str:
    """The text as an SQL literal (standard_conforming_strings on or off)."""
    escaped = value.replace("'", "''")
    return " E'" + escaped.replace("\\", "\\\\") + "'" if "\\" in escaped else f"'{escaped}'"


def parameters(window: Window, naive_zone: str | None = None) -> dict[str, str]:
    """SQL literals of a window's parameters; those that it has not got are absent.

    Times are timestamptz; with `naive_zone` they are timestamps without a zone, local to that zone.
    """
    values = {"partition_key": quote_literal(window.partition)}
    for name, moment in (
        ("window_start", window.start),
        ("window_end", window.end),
        ("export_boundary", window.end),
    ):
        if moment is None:
            continue
        if naive_zone is None:
            values[name] = f"'{moment.isoformat(sep=' ')}'::timestamptz"
        else:
            local = moment.astimezone(ZoneInfo(naive_zone)).replace(tzinfo=None)
            values[name] = f"'{local.isoformat(sep=' ')}'::timestamp"
    return values


def parameters_used(text: str) -> set[str]:
    """Names of the parameters in a statement's text, known or not; those in comments bound nothing and do not count."""
    return {match[1] for match in _PARAMETER.finditer(_without_comments(text)) if match[0] != "%%"}


def render(text: str, values: Mapping[str, str], *, file: Path) -> str:
    """Fill in the parameters. `%%` becomes `%`, as in the drivers that such files were written for; any other `%`
    stays as it is.

    Raises:
        SpecError: a parameter that does not exist, or that this partition has not got.
    """

    def literal(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        if match[1] not in values:
            known = match[1] in PARAMETERS
            raise SpecError(
                f"parameter %({match[1]})s " + ("has no value without partitions" if known else "does not exist"),
                file=file,
                line=text.count("\n", 0, match.start()) + 1,
                hint="add `partitions`" if known else f"there are {', '.join(PARAMETERS)}",
            )
        return values[match[1]]

    return _PARAMETER.sub(literal, text)


@dataclass(frozen=True)
class RelationName:
    """A relation as a statement names it, and how its columns are qualified there."""

    schema: str | None
    name: str
    qualifier: str
    only: bool

    @property
    def sql(self) -> str:
        """Quoted, with its schema if it was given."""
        schema = f"{quote_identifier(self.schema)}." if self.schema else ""
        return schema + quote_identifier(self.name)

    def same(self, other: RelationName) -> bool:
        """Whether both are written as the same relation (the server decides in the end)."""
        return self.name == other.name and (self.schema or other.schema) == (other.schema or self.schema)


def identity_columns(qualifier: str, *, tableoid: bool) -> str:
    """The columns of a row's identity, as they stand in exports, sidecars and RETURNING clauses.

    The ctid stands last: its end, the first parenthesis and quote of a record, is found by one search.
    """
    return ", ".join(f"{qualifier}.{name}" for name in (("tableoid",) if tableoid else ()) + ("xmin", "ctid"))


@dataclass(frozen=True)
class Select:
    """A reading statement: the text of its query, and the relations whose row identities can ride along in it.

    `insertion` is where in `query` the select list begins. `relations` has each plain relation of its FROM that stands
    there once and on no nullable side of a join; it is empty when rows of the result are not rows of a relation
    (set operations, DISTINCT, GROUP BY, VALUES), and `opaque` says why.
    """

    query: str
    csv: CsvSpec | None
    insertion: int
    relations: tuple[RelationName, ...]
    opaque: str
    repeats: bool
    """Whether a row of a relation may stand in several records: by a join, or a function that returns a set."""

    def with_identity(self, relation: RelationName, *, tableoid: bool) -> str:
        """The query with the row's identity as its first columns."""
        extra = identity_columns(relation.qualifier, tableoid=tableoid)
        return f"{self.query[: self.insertion]} {extra}, {self.query[self.insertion :]}"


@dataclass(frozen=True)
class Delete:
    """A DELETE of one table, cut into its clauses."""

    prefix: str
    """WITH clause, or empty."""
    relation: RelationName
    target: str
    """The relation as written, with ONLY and its alias."""
    using: str
    where: str

    def statement(self, condition: str, returning: str) -> str:
        """The same DELETE, of rows that also fulfil `condition`."""
        using = f" USING {self.using}" if self.using else ""
        return f"{self.prefix} DELETE FROM {self.target}{using} WHERE {self._where(condition)} RETURNING {returning}"

    def selection(self, columns: str, condition: str = "") -> str:
        """A SELECT of the rows which it would delete. With USING a row may come more than once."""
        using = f", {self.using}" if self.using else ""
        distinct = "DISTINCT " if self.using else ""
        where = f" WHERE {self._where(condition)}" if self.where or condition else ""
        return f"{self.prefix} SELECT {distinct}{columns} FROM {self.target}{using}{where}"

    def _where(self, condition: str) -> str:
        # A newline ends a comment that may stand at the end of the user's text.
        own = f"({self.where}\n)" if self.where else ""
        return " AND ".join(part for part in (own, condition) if part)


@lru_cache(maxsize=4096)
def parse_select(text: str, file: Path) -> Select:
    """Read a rendered select.sql: one query, or one `COPY (query) TO STDOUT` in CSV format; nothing that writes.

    Raises:
        SpecError: with the line, for anything else.
    """
    statement = _one_statement(text, file)
    tokens = _tokens(text)
    if isinstance(statement, ast.CopyStmt):
        csv = _copy_options(statement, file)
        if statement.relation is not None:
            name = _relation(statement.relation)
            columns = ", ".join(quote_identifier(column.sval) for column in statement.attlist or ()) or "*"
            return replace(parse_select(f"SELECT {columns} FROM {name.sql}", file), csv=csv)
        inner = statement.query
        text = _inside_parentheses(text, tokens)
        tokens = _tokens(text)
    else:
        csv, inner = None, statement
    if not isinstance(inner, ast.SelectStmt):
        raise SpecError("select.sql must be one SELECT or one COPY (SELECT …) TO STDOUT", file=file, line=1)
    _refuse_writes(inner, file)
    end = next((t.end + 1 for t in reversed(tokens) if t.name != "ASCII_59"), len(text))
    query = text[:end]
    opaque = _opaque(inner)
    insertion = _select_list(tokens)
    if insertion is None:
        opaque = opaque or "a SELECT in parentheses of its own"
    relations = () if opaque else _plain_relations(inner)
    return Select(query, csv, insertion or 0, relations, opaque, _repeats(inner))


@lru_cache(maxsize=4096)
def parse_delete(text: str, file: Path) -> Delete:
    """Read a rendered delete.sql: one DELETE of one table, writing nothing else, returning nothing.

    Raises:
        SpecError: with the line, for anything else.
    """
    statement = _one_statement(text, file)
    if not isinstance(statement, ast.DeleteStmt):
        raise SpecError("delete.sql must be one DELETE of one table", file=file, line=1)
    for part in (statement.withClause, statement.usingClause, statement.whereClause):
        _refuse_writes(part, file)
    # pglast names it after PostgreSQL 18's grammar, or after older ones.
    if getattr(statement, "returningClause", None) or getattr(statement, "returningList", None):
        raise SpecError("delete.sql has a RETURNING clause", file=file, hint="leave it out: the proof needs its own")
    if isinstance(statement.whereClause, ast.CurrentOfExpr):
        raise SpecError("delete.sql uses WHERE CURRENT OF, which needs a cursor", file=file)
    every = _tokens(text)
    tokens = _top_level(every)
    names = [t.name for t in tokens]
    delete = names.index("DELETE_P")
    start = tokens[names.index("FROM", delete)].end + 1
    end = next(t.end + 1 for t in reversed(every) if t.name != "ASCII_59")
    where = tokens[names.index("WHERE", delete)] if "WHERE" in names[delete:] else None
    stop = where.start if where else end
    using = tokens[names.index("USING", delete)] if statement.usingClause else None
    return Delete(
        prefix=text[: tokens[delete].start],
        relation=_relation(statement.relation),
        target=text[start : using.start if using else stop].strip(),
        using=text[using.end + 1 : stop].strip() if using else "",
        where=text[where.end + 1 : end].strip() if where else "",
    )


def _one_statement(text: str, file: Path) -> Any:
    try:
        statements = parse_sql(text)
    except ParseError as error:
        message, location = error.args[0], error.args[1] if len(error.args) > 1 else 0
        line = text.count("\n", 0, max(location or 0, 0)) + 1
        raise SpecError(f"SQL does not parse: {message}", file=file, line=line) from error
    if len(statements) != 1:
        found = f"{len(statements)} statements" if statements else "no statement"
        raise SpecError(f"{found} where one is expected", file=file, line=1, hint="a file holds one statement")
    return statements[0].stmt


def _tokens(text: str) -> list[Any]:
    return [token for token in scan(text) if token.name not in ("SQL_COMMENT", "C_COMMENT")]


def _without_comments(text: str) -> str:
    try:
        comments = [token for token in scan(text) if token.name in ("SQL_COMMENT", "C_COMMENT")]
    except ParseError:
        return text
    for token in reversed(comments):
        text = f"{text[: token.start]} {text[token.end + 1 :]}"
    return text


def _top_level(tokens: list[Any]) -> list[Any]:
    """Tokens outside of parentheses and brackets."""
    depth, top = 0, []
    for token in tokens:
        if token.name in ("ASCII_40", "ASCII_91"):
            depth += 1
        elif token.name in ("ASCII_41", "ASCII_93"):
            depth -= 1
        elif depth == 0:
            top.append(token)
    return top


def _inside_parentheses(text: str, tokens: list[Any]) -> str:
    """The query of `COPY (query) TO …`."""
    depth, start = 0, 0
    for token in tokens:
        if token.name == "ASCII_40":
            depth += 1
            start = start or token.end + 1
        elif token.name == "ASCII_41":
            depth -= 1
            if depth == 0:
                return text[start : token.start].strip()
    raise AssertionError("the parser accepted unbalanced parentheses")


def _copy_options(statement: Any, file: Path) -> CsvSpec:
    if statement.is_from or statement.is_program or statement.filename:
        raise SpecError(
            "COPY must be TO STDOUT, without FROM, PROGRAM or a server's file",
            file=file,
            line=1,
            hint="write COPY (SELECT …) TO STDOUT WITH CSV HEADER, or the SELECT alone",
        )
    options: dict[str, Any] = {"header": False}
    for option in statement.options or ():
        value = getattr(option.arg, "sval", getattr(option.arg, "boolval", getattr(option.arg, "ival", True)))
        options[option.defname] = value
    unknown = set(options) - {"format", "header", "delimiter", "null", "quote"}
    if unknown or options.pop("format", "text") != "csv":
        what = f"option {sorted(unknown)[0].upper()}" if unknown else "a format other than CSV"
        raise SpecError(
            f"COPY with {what} cannot be exported", file=file, line=1, hint="CSV with HEADER, DELIMITER, NULL, QUOTE"
        )
    options["header"] = str(options["header"]).lower() in ("true", "on", "1")
    try:
        return CsvSpec(**options)
    except ValidationError as error:
        # An option by itself has its name; options that do not go together have none.
        problem = error.errors()[0]
        what = " ".join(["COPY", *(f"with {str(name).upper()} {problem['input']!r}" for name in problem["loc"])])
        raise SpecError(
            f"{what} cannot be exported: {problem['msg'].removeprefix('Value error, ')}", file=file, line=1
        ) from error


def _refuse_writes(node: Any, file: Path) -> None:
    class Writes(Visitor):
        def visit(self, ancestors: Any, node: Any) -> None:
            if isinstance(node, _WRITES):
                raise SpecError("a statement inside writes (INSERT, UPDATE, DELETE or MERGE)", file=file, line=1)
            if isinstance(node, ast.SelectStmt) and (node.intoClause or node.lockingClause):
                what = "SELECT INTO" if node.intoClause else "FOR UPDATE or FOR SHARE"
                raise SpecError(f"{what} writes", file=file, line=1, hint="select.sql only reads")

    if node is not None:
        Writes()(node)


def _opaque(select: Any) -> str:
    """Why rows of the result are not rows of a relation; empty when they are."""
    if select.op.value != 0:
        return f"a set operation ({select.op.name.removeprefix('SETOP_')})"
    reasons = {
        "VALUES": select.valuesLists,
        "DISTINCT": select.distinctClause,
        "GROUP BY": select.groupClause,
        "HAVING": select.havingClause,
        # An identity in front would shift the numbers.
        "ORDER BY a column's number": any(isinstance(o.node, ast.A_Const) for o in select.sortClause or ()),
    }
    return next((name for name, clause in reasons.items() if clause), "")


def _repeats(select: Any) -> bool:
    """Whether one record a row is not certain. Only the server knows which functions return sets."""
    items: tuple[Any, ...] = select.fromClause or ()
    if len(items) != 1 or not isinstance(items[0], ast.RangeVar):
        return True
    calls: list[Any] = []

    class Calls(Visitor):
        def visit(self, ancestors: Any, node: Any) -> None:
            if isinstance(node, ast.FuncCall):
                calls.append(node)

    for target in select.targetList or ():
        Calls()(target)
    return bool(calls)


def _select_list(tokens: list[Any]) -> int | None:
    """Offset behind the SELECT (ALL) of the outermost query, which a WITH clause may precede; None if it stands in
    parentheses of its own."""
    depth = 0
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.name == "ASCII_40":
            depth += 1
        elif token.name == "ASCII_41":
            depth -= 1
        elif depth == 0 and token.name == "SELECT":
            return int((following if following is not None and following.name == "ALL" else token).end) + 1
    return None


def _plain_relations(select: Any) -> tuple[RelationName, ...]:
    ctes = {cte.ctename for cte in select.withClause.ctes} if select.withClause else set()
    found = [r for item in select.fromClause or () for r in _not_nullable(item)]
    # Columns that an alias names anew could be called ctid.
    found = [r for r in found if not (r.alias and r.alias.colnames)]
    names = [_relation(r) for r in found if r.schemaname or r.relname not in ctes]
    return tuple(name for name in names if sum(name.same(other) for other in names) == 1)


def _not_nullable(item: Any) -> Iterator[Any]:
    """Plain relations of a FROM item that an outer join cannot fill with NULLs."""
    if isinstance(item, ast.RangeVar):
        yield item
    elif isinstance(item, ast.JoinExpr):
        kind = item.jointype.name if item.jointype is not None else ""
        if kind in ("JOIN_INNER", "JOIN_LEFT"):
            yield from _not_nullable(item.larg)
        if kind in ("JOIN_INNER", "JOIN_RIGHT"):
            yield from _not_nullable(item.rarg)


def _relation(node: Any) -> RelationName:
    alias = node.alias.aliasname if node.alias else None
    return RelationName(node.schemaname, node.relname, quote_identifier(alias or node.relname), not node.inh)
