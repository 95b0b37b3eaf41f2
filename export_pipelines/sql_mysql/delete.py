"""A deleting statement in MySQL's dialect: whether it deletes from one table and nothing else, cut into its clauses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from export_pipelines.sql_mysql.names import MysqlRelation
from export_pipelines.sql_mysql.text import Statement, called, one_statement, refuse_words, top_level

_MULTI = "write DELETE FROM t WHERE …, with a subquery for other tables"
_AFTER = {
    ",": ("DELETE of several tables", _MULTI),
    "USING": ("DELETE with USING", _MULTI),
    "JOIN": ("DELETE with a JOIN", _MULTI),
    "FOR": ("DELETE FOR PORTION OF, which writes rows as well,", "write a WHERE clause"),
    "ORDER BY": ("DELETE with ORDER BY", "leave it out: rows are deleted by statements of our own"),
    "LIMIT": ("DELETE with LIMIT", "leave it out: rows are deleted by statements of our own"),
    "RETURNING": ("DELETE with RETURNING", "leave it out: the proof reads the rows itself"),
}


@dataclass(frozen=True)
class MysqlDelete:
    """A DELETE of one table, cut into its clauses."""

    relation: MysqlRelation
    target: str
    """The table as written, with its PARTITION clause."""
    where: str
    """Without WHERE; empty for all rows."""
    partitions: bool = False
    """Whether the target has a PARTITION clause."""
    called: frozenset[tuple[str | None, str]] = frozenset()
    """What may be functions: schema or None, and name, in lower case."""

    def selection(self, columns: str, condition: str = "") -> str:
        """A SELECT of the rows which it would delete, those that also fulfil `condition`."""
        # A newline ends a comment that may stand at the end of the user's text.
        own = f"({self.where}\n)" if self.where else ""
        where = " AND ".join(part for part in (own, condition) if part)
        return f"SELECT {columns} FROM {self.target}" + (f" WHERE {where}" if where else "")

    def matches(self) -> str:
        """An SQL expression that is true for the rows which it would delete, and never NULL."""
        return f"(({self.where}\n)) IS TRUE" if self.where else "TRUE"


@lru_cache(maxsize=4096)
def parse_delete(text: str, file: Path) -> MysqlDelete:
    """Read a rendered delete.sql: one DELETE of one table, writing nothing else, returning nothing.

    Raises:
        SpecError: with the line, for anything else.
    """
    statement = one_statement(text, file)
    if statement.verb != "DELETE":
        hint = "MariaDB has no WITH here: write the subquery into WHERE" if statement.verb == "WITH" else ""
        raise statement.error("delete.sql must be one DELETE of one table", hint=hint)
    refuse_words(statement)
    top = top_level(statement.tokens())
    start = _from(statement, top) + 1
    where = _end_of_target(statement, top, start)
    for token in top[where:]:
        _refuse_clause(statement, token)
    relation = _relation(statement)
    stop = top[where].start if where < len(top) else len(statement.text)
    written = statement.text[top[where].end + 1 :].strip() if where < len(top) else ""
    target = statement.text[top[start - 1].end + 1 : stop].strip()
    partitions = any(each.text.upper() == "PARTITION" for each in top[start + 1 : where])
    return MysqlDelete(relation, target, written, partitions, called(statement))


def _from(statement: Statement, top: Sequence[Any]) -> int:
    """Index of its FROM, which has to follow at once."""
    word = top[1].text.upper() if len(top) > 1 else ""
    if word == "FROM":
        return 1
    if not word:
        raise statement.error("SQL does not parse: DELETE without FROM")
    at = top[1].start
    if word in ("LOW_PRIORITY", "QUICK", "IGNORE"):
        raise statement.error(
            f"DELETE with {word} would lose it", at=at, hint="leave it out: rows are deleted by statements of our own"
        )
    if word == "HISTORY":
        raise statement.error("DELETE HISTORY deletes no rows that a SELECT reads", at=at, hint=_MULTI)
    raise statement.error("DELETE that names tables before FROM", at=at, hint=_MULTI)


def _end_of_target(statement: Statement, top: Sequence[Any], start: int) -> int:
    """Index of its WHERE, or behind the last token; before that stands one name, and PARTITION."""
    end = start + 1
    while end + 1 < len(top) and top[end].token_type.name == "DOT":
        if top[end + 1].token_type.name == "STAR":
            raise statement.error("DELETE of several tables", at=top[end].start, hint=_MULTI)
        end += 2
    if end < len(top) and top[end].text.upper() == "PARTITION":
        end += 1
    if end >= len(top) or top[end].token_type.name == "WHERE":
        return end
    _refuse_clause(statement, top[end])
    if top[end].token_type.name == "ALIAS" or top[end].token_type.name in ("VAR", "IDENTIFIER"):
        raise statement.error(
            "DELETE with an alias, which MariaDB has not got",
            at=top[end].start,
            hint="qualify columns by the table's name",
        )
    raise statement.error(f"SQL does not parse: {top[end].text!r} behind the table of a DELETE", at=top[end].start)


def _refuse_clause(statement: Statement, token: Any) -> None:
    words = " ".join(statement.bare[token.start : token.end + 1].upper().split())
    name = next((name for name in _AFTER if words == name or words.startswith(f"{name} ")), "")
    if name:
        message, hint = _AFTER[name]
        raise statement.error(f"{message} cannot be proved", at=token.start, hint=hint)


def _relation(statement: Statement) -> MysqlRelation:
    from sqlglot import exp

    tree = statement.parse()
    table = tree.this
    parts = {key for key, value in tree.args.items() if value} - {"this", "where"}
    if not isinstance(tree, exp.Delete) or not isinstance(table, exp.Table) or parts:
        raise statement.error("delete.sql must be one DELETE of one table", hint=_MULTI)
    if table.alias or table.catalog or not isinstance(table.this, exp.Identifier):
        raise statement.error("delete.sql must be one DELETE of one table", hint=_MULTI)
    named = MysqlRelation(table.db or None, table.name, "")
    return MysqlRelation(named.schema, named.name, named.sql)
