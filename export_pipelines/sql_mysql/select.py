"""A reading statement in MySQL's dialect: whether it only reads, and which rows of tables its records are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from export_pipelines.sql_mysql.names import MysqlRelation, quote_identifier
from export_pipelines.sql_mysql.text import Statement, one_statement, refuse_words, top_level

_AGGREGATES = ("JSON_ARRAYAGG", "JSON_OBJECTAGG", "ST_COLLECT", "MEDIAN", "PERCENTILE_CONT", "PERCENTILE_DISC")
"""Those that sqlglot does not know, or not in each version."""
_CLAUSES = {"expressions", "from_", "joins", "where", "order", "limit", "offset", "windows", "with_"} | {
    "operation_modifiers"
}
_TABLE_PARTS = {"this", "db", "alias", "hints", "partition", "joins"}
_INNER = ("", "INNER", "CROSS", "OUTER", "STRAIGHT_JOIN", "STRAIGHT")


@dataclass(frozen=True)
class MysqlSelect:
    """A reading statement: the text of its query, and the tables whose keys and columns can ride along in it.

    `insertion` is where in `query` the outermost select list ends: MySQL has no `SELECT x, *`, so that more columns go
    behind it. `relations` has each plain table of its FROM that stands there once and on no nullable side of a join; it
    is empty when rows of the result are not rows of a relation (set operations, DISTINCT, GROUP BY, aggregates), and
    `opaque` says why.
    """

    query: str
    insertion: int
    relations: tuple[MysqlRelation, ...]
    opaque: str
    repeats: bool
    """Whether a row of a relation may stand in several records, by a join."""
    ordered: bool
    """Whether it ends with an ORDER BY (which a derived table keeps only with a LIMIT)."""
    limited: bool
    """Whether it ends with a LIMIT."""
    derived: frozenset[str] = frozenset()
    """Names of its derived tables and common table expressions, in lower case: the server tells of a column of these as
    of one of a table of that name."""

    def with_columns(self, extra: str) -> str:
        """The query with more columns as its last ones. Only for a query that has relations."""
        assert self.relations, "no relation stands in the query whose columns could be added"
        rest = self.query[self.insertion :]
        return f"{self.query[: self.insertion]}, {extra}{'' if rest[:1].isspace() else ' '}{rest}"


@lru_cache(maxsize=4096)
def parse_select(text: str, file: Path) -> MysqlSelect:
    """Read a rendered select.sql: one query; nothing that writes, locks, or depends on a session's variables.

    Raises:
        SpecError: with the line, for anything else.
    """
    statement = one_statement(text, file)
    _refuse_other_verbs(statement)
    refuse_words(statement)
    tokens = statement.tokens()
    tree = statement.parse()
    if not _is_query(tree) or not any(token.token_type.name == "SELECT" for token in _outermost(tokens, tree)):
        raise statement.error("select.sql must be one SELECT")
    opaque = _opaque(tree, statement)
    last = _last_level(tree)
    return MysqlSelect(
        query=statement.text,
        insertion=0 if opaque else _end_of_list(tokens),
        relations=() if opaque else _plain_relations(tree),
        opaque=opaque,
        repeats=_repeats(tree),
        ordered=bool(last.args.get("order")),
        limited=bool(last.args.get("limit") or last.args.get("offset")),
        derived=_derived(tree),
    )


def _derived(tree: Any) -> frozenset[str]:
    from sqlglot import exp

    return frozenset(each.alias.lower() for each in tree.find_all(exp.Subquery, exp.CTE) if each.alias)


def _refuse_other_verbs(statement: Statement) -> None:
    hints = {
        "COPY": "COPY is PostgreSQL's: write the SELECT alone; the dialect of the file is `format` in defs.yaml",
        "TABLE": "write SELECT * FROM …; MariaDB has no TABLE",
        "VALUES": "write SELECT … UNION ALL SELECT …; MySQL and MariaDB write VALUES differently",
    }
    if statement.verb not in ("SELECT", "WITH"):
        raise statement.error("select.sql must be one SELECT", hint=hints.get(statement.verb, ""))


def _is_query(tree: Any) -> bool:
    from sqlglot import exp

    while isinstance(tree, exp.Subquery):
        tree = tree.this
    return isinstance(tree, (exp.Select, exp.SetOperation))


def _outermost(tokens: Sequence[Any], tree: Any) -> Sequence[Any]:
    """Tokens where the word SELECT of the query has to stand."""
    from sqlglot import exp

    return top_level(tokens) if isinstance(tree, exp.Select) else tokens


def _opaque(tree: Any, statement: Statement) -> str:
    """Why rows of the result are not rows of a relation; empty when they are."""
    from sqlglot import exp

    if isinstance(tree, exp.SetOperation):
        return f"a set operation ({tree.key.upper()})"
    if not isinstance(tree, exp.Select) or statement.code.lstrip().startswith("("):
        return "a SELECT in parentheses of its own"
    reasons = {"DISTINCT": "distinct", "GROUP BY": "group", "HAVING": "having"}
    found = next((name for name, key in reasons.items() if tree.args.get(key)), "")
    aggregate = next(_aggregates(tree), None)
    unknown = sorted(key for key, value in tree.args.items() if value and key not in _CLAUSES)
    if aggregate is not None and not found:
        return f"an aggregate function ({(aggregate.name if _is_unknown(aggregate) else aggregate.sql_name()).upper()})"
    return found or next((key.upper() for key in unknown), "")


def _is_unknown(node: Any) -> bool:
    from sqlglot import exp

    return isinstance(node, exp.Anonymous)


def _aggregates(select: Any) -> Iterator[Any]:
    """Aggregates that may make one record of all rows of this query.

    In a subquery, an aggregate of outer columns belongs to the outer query. One there is counted as well unless its
    argument says by a qualifier (or by having no columns) that it belongs to the subquery.
    """
    from sqlglot import exp

    order = select.args.get("order")
    for part in (*select.expressions, *(select.args.get("windows") or ()), *([order] if order else [])):
        for node in part.walk():
            named = _is_unknown(node) and node.name.upper() in _AGGREGATES
            if not (named or isinstance(node, exp.AggFunc)) or _is_windowed(node):
                continue
            own = node.parent_select
            if own is select or not _is_of(node, own):
                yield node


def _is_windowed(node: Any) -> bool:
    from sqlglot import exp

    while isinstance(node.parent, (exp.IgnoreNulls, exp.RespectNulls, exp.Filter, exp.WithinGroup)):
        node = node.parent
    return isinstance(node.parent, exp.Window) and node.parent.this is node


def _is_of(aggregate: Any, query: Any) -> bool:
    """Whether an aggregate is surely one of this subquery's rows."""
    from sqlglot import exp

    columns = list(aggregate.find_all(exp.Column))
    sources = {item.alias_or_name.lower() for item in _sources(query)}
    return bool(sources) and (not columns or any(column.table.lower() in sources for column in columns))


def _sources(query: Any) -> Iterator[Any]:
    start = query.args.get("from_")
    if start is not None:
        yield from (item for item in (start.this, *(join.this for join in query.args.get("joins") or ())) if item)


def _last_level(tree: Any) -> Any:
    """The outermost of nested parentheses that has an ORDER BY or a LIMIT."""
    from sqlglot import exp

    while isinstance(tree, exp.Subquery) and not any(tree.args.get(key) for key in ("order", "limit", "offset")):
        tree = tree.this
    return tree


def _repeats(tree: Any) -> bool:
    """Whether one record a row is not certain."""
    from sqlglot import exp

    start = tree.args.get("from_")
    table = start.this if start is not None else None
    return not isinstance(table, exp.Table) or bool(tree.args.get("joins") or table.args.get("joins"))


def _end_of_list(tokens: Sequence[Any]) -> int:
    """Offset behind the outermost select list; 0 without FROM."""
    top = {token.start for token in top_level(tokens)}
    outer = [token.token_type.name if token.start in top else "" for token in tokens]
    select = outer.index("SELECT")
    return int(tokens[outer.index("FROM", select) - 1].end) + 1 if "FROM" in outer[select:] else 0


def _plain_relations(select: Any) -> tuple[MysqlRelation, ...]:
    start, clause = select.args.get("from_"), select.args.get("with_")
    if start is None:
        return ()
    ctes = {cte.alias.lower() for cte in clause.expressions} if clause is not None else set()
    names = [
        _relation(table)
        for table in _joined(_not_nullable(start.this), select.args.get("joins"))
        if table.db or not (table.name.lower() in ctes or _is_dual(table))
    ]
    return tuple(name for name in names if sum(name.same(other) for other in names) == 1)


def _not_nullable(item: Any) -> list[Any]:
    """Plain tables of a FROM item that an outer join cannot fill with NULLs."""
    from sqlglot import exp

    if isinstance(item, exp.Subquery) and not item.alias and isinstance(item.this, (exp.Table, exp.Subquery)):
        return _joined(_not_nullable(item.this), item.args.get("joins"))
    if not isinstance(item, exp.Table):
        return []
    named = isinstance(item.this, exp.Identifier) and not item.alias_column_names
    plain = named and all(key in _TABLE_PARTS for key, value in item.args.items() if value)
    return _joined([item] if plain else [], item.args.get("joins"))


def _joined(found: list[Any], joins: Sequence[Any] | None) -> list[Any]:
    """The same of a FROM item and what is joined to it. Of joins that MySQL has not got, none: it reads those words as
    aliases."""
    for join in joins or ():
        side, kind, method = (join.args.get(key) or "" for key in ("side", "kind", "method"))
        if side not in ("", "LEFT", "RIGHT") or kind not in _INNER or method not in ("", "NATURAL"):
            return []
        other = _not_nullable(join.this)
        found = found if side == "LEFT" else other if side == "RIGHT" else [*found, *other]
    return found


def _is_dual(table: Any) -> bool:
    return bool(table.name.upper() == "DUAL" and not table.this.quoted)


def _relation(table: Any) -> MysqlRelation:
    named = MysqlRelation(table.db or None, table.name, "")
    # Two tables of one name in two databases are told apart by these alone.
    return replace(named, qualifier=quote_identifier(table.alias) if table.alias else named.sql)


def tables_of(text: str) -> set[tuple[str | None, str]]:
    """Schema (or None) and name of everything in a statement that may be a table or a view, subqueries included; also
    names of common table expressions, since one may be that of a table, too."""
    from sqlglot import exp, parse_one

    found = parse_one(text, dialect="mysql").find_all(exp.Table)
    return {(each.db or None, each.name) for each in found if isinstance(each.this, exp.Identifier)}
