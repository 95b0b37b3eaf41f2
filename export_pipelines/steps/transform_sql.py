"""What a transform.sql says: its statements, the tables that they read, and those that they make or change.

PostgreSQL's own parser reads it. What functions and DO blocks do is not seen: that is what `depends` is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pglast import ast, parse_sql, split
from pglast.parser import ParseError
from pglast.visitors import Visitor

from export_pipelines.errors import SpecError
from export_pipelines.specs.transform import TransformDefinition

_SYSTEM = ("pg_catalog", "information_schema", "pg_temp", "operations")
_CHANGES = (ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt)
_KINDS = {
    "CreateTableAsStmt": "CREATE TABLE AS",
    "CreateStmt": "CREATE TABLE",
    "ViewStmt": "CREATE VIEW",
    "IndexStmt": "CREATE INDEX",
    "VariableSetStmt": "SET",
    "DropStmt": "DROP",
    "DoStmt": "DO",
}


@dataclass(frozen=True)
class Statement:
    """One statement: its text without the semicolon, the line on which it begins, and what it is."""

    text: str
    line: int
    kind: str


@dataclass(frozen=True)
class TransformSql:
    """All of a transform.sql. Tables are named `schema.name`, or `name` where it gives no schema, each once."""

    statements: tuple[Statement, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def read_transform(transform: TransformDefinition) -> TransformSql:
    """Parse the SQL of a transform.

    Raises:
        SpecError: with file and line, for what does not parse or may not be there.
    """
    text, file = transform.sql, transform.file
    try:
        parsed = [each.stmt for each in parse_sql(text)]
        slices = split(text, only_slices=True) if parsed else ()
    except ParseError as error:
        location = error.args[1] if len(error.args) > 1 else 0
        line = text.count("\n", 0, max(location or 0, 0)) + 1
        raise SpecError(f"SQL does not parse: {error.args[0]}", file=file, line=line) from error
    lines = [text.count("\n", 0, each.start) + 1 for each in slices]
    found = [Statement(text[part], line, _kind(node)) for part, line, node in zip(slices, lines, parsed, strict=True)]
    for node, line in zip(parsed, lines, strict=True):
        _refuse(transform, node, line)
    if transform.spec.materialize != "statements":
        _refuse_others(transform, parsed, lines)
    reads, writes = _relations(parsed)
    return TransformSql(tuple(found), reads, writes)


def _kind(node: Any) -> str:
    name = type(node).__name__
    return _KINDS.get(name, name.removesuffix("Stmt").upper())


def _refuse(transform: TransformDefinition, node: Any, line: int) -> None:
    """What may stand in no transform."""
    if isinstance(node, ast.TransactionStmt):
        raise SpecError(
            "it begins or ends a transaction",
            file=transform.file,
            line=line,
            hint="it runs in one already; take it out",
        )
    if isinstance(node, ast.CopyStmt):
        raise SpecError("COPY reads or writes files", file=transform.file, line=line, hint="a LoadTable loads files")


def _refuse_others(transform: TransformDefinition, parsed: list[Any], lines: list[int]) -> None:
    """Of a table or a view: anything but one query that only reads."""
    what, hint = transform.spec.materialize, "write `materialize: statements` for anything else"
    if len(parsed) != 1 or not isinstance(parsed[0], ast.SelectStmt):
        line = next((n for n, each in zip(lines, parsed, strict=True) if not isinstance(each, ast.SelectStmt)), 1)
        raise SpecError(f"a {what} is made by one SELECT, and nothing else", file=transform.file, line=line, hint=hint)
    for node in _nodes(parsed[0]):
        if isinstance(node, _CHANGES) or (isinstance(node, ast.SelectStmt) and (node.intoClause or node.lockingClause)):
            raise SpecError("the query writes or locks rows", file=transform.file, line=lines[0], hint=hint)


def _nodes(root: Any) -> list[Any]:
    found: list[Any] = []

    class Every(Visitor):
        def visit(self, ancestors: Any, node: Any) -> None:
            found.append(node)

    Every()(root)
    return found


def _relations(parsed: list[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tables that are read, and those that are made or changed; temporary ones are neither."""
    reads: dict[str, None] = {}
    writes: dict[str, None] = {}
    own: set[str] = set()
    for statement in parsed:
        nodes = _nodes(statement)
        targets = {id(target): target for node in nodes for target in _targets(node)}
        named = {node.ctename for node in nodes if isinstance(node, ast.CommonTableExpr)}
        for node in nodes:
            if not isinstance(node, ast.RangeVar) or node.schemaname in _SYSTEM:
                continue
            name = ".".join(part for part in (node.schemaname, node.relname) if part)
            if id(node) in targets:
                (own.add(name) if node.relpersistence == "t" else writes.setdefault(name))
            elif node.schemaname or node.relname not in named:
                reads.setdefault(name)
    made = [name for name in writes if name not in own]
    return tuple(name for name in reads if name not in own and name not in writes), tuple(made)


def _targets(node: Any) -> Iterator[Any]:
    """The relations that a node of the tree makes or changes."""
    match node:
        case ast.InsertStmt() | ast.UpdateStmt() | ast.DeleteStmt() | ast.MergeStmt() | ast.CreateStmt():
            yield node.relation
        case ast.IndexStmt() | ast.AlterTableStmt():
            yield node.relation
        case ast.IntoClause():
            yield node.rel
        case ast.ViewStmt():
            yield node.view
        case ast.TruncateStmt():
            yield from node.relations or ()
