"""Choosing how the rows of an export can be proved later: by row, by key, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from export_pipelines.errors import SourceError
from export_pipelines.manifest import Column
from export_pipelines.sources import inspect
from export_pipelines.sources.inspect import RelationTree
from export_pipelines.sources.postgres import Session
from export_pipelines.sql import RelationName, Select
from export_pipelines.steps.postgres.statements import Statements


@dataclass(frozen=True)
class IdentityPlan:
    """How identities are had. `query` is what COPY runs; its first `fields` columns are the identity in mode `row`."""

    mode: Literal["row", "key", "none"]
    query: str
    columns: tuple[Column, ...]
    reason: str = ""
    relation: RelationName | None = None
    tree: RelationTree = field(default=RelationTree((), ""))
    tableoid: bool = False
    key: tuple[str, ...] = ()

    @property
    def fields(self) -> int:
        """Number of identity columns in front of the file's own."""
        return (3 if self.tableoid else 2) if self.mode == "row" else 0


def plan_identity(session: Session, statements: Statements, key: tuple[str, ...]) -> IdentityPlan:
    """Decide, inside of the export's transaction; `key` is the declared one, or empty for the primary key.

    Row identities ride along where the target of delete.sql stands in select.sql as a plain relation. Otherwise the
    rows are known by key, if the file has the key's columns. Otherwise nothing can be proved.
    """
    select, delete = statements.select, statements.delete
    target = delete.relation if delete else select.relations[0] if len(select.relations) == 1 else None
    if target is None:
        reason = "there is no delete.sql" if delete is None else select.opaque
        return IdentityPlan("none", select.query, inspect.columns(session, select.query), reason or "no one table")
    tree = inspect.relation_tree(session, target.sql, only=target.only)
    if tree.unsound:
        return IdentityPlan("none", select.query, inspect.columns(session, select.query), tree.unsound)
    source = relation_of(session, select, target)
    reason = select.opaque or f"{target.sql} is no plain table of the FROM clause of select.sql"
    if source is not None:
        tableoid = needs_tableoid(session, source, target)
        query = select.with_identity(source, tableoid=tableoid)
        try:
            session.execute("SAVEPOINT identity")
            columns = inspect.columns(session, query)[3 if tableoid else 2 :]
        except SourceError as error:
            session.execute("ROLLBACK TO identity")
            reason = error.message
        else:
            if not columns:
                inspect.columns(session, select.query)
            # Describing has locked the table until the end of the transaction: from here on its file nodes stay.
            tree = inspect.relation_tree(session, target.sql, only=target.only)
            return IdentityPlan("row", query, columns, "", source, tree, tableoid)
    return _by_key(session, statements, key, reason, target, tree)


def relation_of(session: Session, select: Select, target: RelationName) -> RelationName | None:
    """The relation of select.sql which is the target of delete.sql, by the server's word: a name without a schema may
    mean another table than the same name with one."""
    alike = [relation for relation in select.relations if relation.same(target)]
    return next((relation for relation in alike if inspect.same_relation(session, relation.sql, target.sql)), None)


def needs_tableoid(session: Session, *relations: RelationName) -> bool:
    """Whether rows of these relations come from more than one heap, so that ctid and xmin alone are ambiguous."""
    trees = (inspect.relation_tree(session, each.sql, only=each.only) for each in relations)
    return any(len(tree.heaps) != 1 for tree in trees)


def _by_key(
    session: Session,
    statements: Statements,
    key: tuple[str, ...],
    reason: str,
    target: RelationName,
    tree: RelationTree,
) -> IdentityPlan:
    query = statements.select.query
    columns = inspect.columns(session, query)
    declared = bool(key)
    key = key or inspect.primary_key(session, target.sql)
    missing = sorted(set(key) - {column.name for column in columns})
    foreign = [] if missing else _not_of(session, query, columns, key, tree, declared=declared)
    why = ""
    if statements.delete is None or not key:
        why = "and it has no key: declare `key`"
    elif missing:
        why = f"and its key columns {missing} are not in the file"
    elif foreign:
        why = f"and columns {foreign} of the file are not plainly those of {target.sql}"
    elif not inspect.is_unique(session, target.sql, key):
        why = f"and no unique index says that {list(key)} is a key"
    if why:
        return IdentityPlan("none", query, columns, f"{reason}, {why}")
    tree = inspect.relation_tree(session, target.sql, only=target.only)
    return IdentityPlan("key", query, columns, reason, target, tree, len(tree.heaps) != 1, key)


def _not_of(
    session: Session,
    query: str,
    columns: tuple[Column, ...],
    key: tuple[str, ...],
    tree: RelationTree,
    *,
    declared: bool,
) -> list[str]:
    """Key columns whose namesake in the file is another column; a declared key is believed where nobody can tell."""
    names = [column.name for column in columns]
    origins = inspect.origins(session, query, tree.oids)
    found = {name: origins[names.index(name)] for name in key}
    return sorted(name for name, origin in found.items() if origin != name and not (declared and origin is None))
