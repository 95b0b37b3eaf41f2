"""Which row versions of the source a verified archive holds, in batches that one transaction can delete.

An identity (tableoid, ctid, xmin) is sound only in its *place*: the same server, timeline and file nodes, the same
columns and types, and within half the range of a transaction id. Where the place changed, rows are known again by
content: what select.sql gives now is compared with the records of the file (mode `row`), or the key and the MD5 of the
whole row with the sidecar's (mode `key`). New identities come from that, sound in the place of now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from export_pipelines.formats.compression import decompressed
from export_pipelines.formats.csv import copy_options
from export_pipelines.manifest import ArtifactManifest, ExportRecord
from export_pipelines.sources import inspect
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.table import Compression
from export_pipelines.sql import RelationName, identity_columns, parse_select
from export_pipelines.steps import keys
from export_pipelines.steps.batches import Batch, batches
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import Unprovable
from export_pipelines.steps.postgres import keys as pg_keys
from export_pipelines.steps.postgres.binary_identities import decoded, encoded
from export_pipelines.steps.postgres.identity import needs_tableoid, relation_of
from export_pipelines.steps.postgres.matching import Matcher, matcher
from export_pipelines.steps.postgres.statements import Statements
from export_pipelines.steps.postgres.transactions import source_of
from export_pipelines.steps.reading import open_stored
from export_pipelines.steps.receipts import RecordSet
from export_pipelines.steps.records import records_in
from export_pipelines.steps.rows import split_identities
from export_pipelines.steps.sidecar import read_buckets

# Half of the 2**32 transaction ids, less a margin: beyond that an old id may come again as a new one.
_XID_HORIZON = 2**31 - 100_000_000
# Length of what says a row's content in a sidecar of mode `key`: MD5, comma, digest of the key.
_CONTENT = 65
# Rows of a batch on each page of its span, from which on reading the whole span is less work than looking up each.
_DENSE_ROWS = 4


@dataclass(frozen=True)
class Place:
    """Where identities are sound."""

    system_identifier: str
    timeline: int
    database: str
    """A copy made by CREATE DATABASE … TEMPLATE has the file nodes of its original."""
    relations: tuple[tuple[int, int], ...]
    fingerprint: str
    next_xid: int

    def holds(self, now: Place) -> bool:
        """Whether identities of this place still mean the same row versions `now`."""
        return (self.system_identifier, self.timeline, self.database, self.relations, self.fingerprint) == (
            now.system_identifier,
            now.timeline,
            now.database,
            now.relations,
            now.fingerprint,
        ) and 0 <= now.next_xid - self.next_xid < _XID_HORIZON


@dataclass(frozen=True)
class Proof:
    """What proves rows, and where. `batches` may be iterated once."""

    kind: Literal["row", "key", "content"]
    place: Place
    tableoid: bool
    batches: Iterator[Batch]

    def guard(self, qualifier: str) -> str:
        """An SQL condition that ctid and xmin need beside them to be an identity.

        xmin has 32 of the 64 bits of a transaction's id, and a frozen row keeps its own however old it is: one that
        could as well be of a transaction since the export is of neither for sure. And a table that inherits since a
        moment ago from one which stood alone has rows at the same ctids.
        """
        since = self.place.next_xid % 2**32
        young = f"age({qualifier}.xmin) NOT BETWEEN 0 AND age('{since}'::xid)"
        heaps = [oid for oid, file_node in self.place.relations if file_node]
        return young if self.tableoid or len(heaps) != 1 else f"{qualifier}.tableoid = {heaps[0]} AND {young}"


def place_of(record: ExportRecord) -> Place:
    """The place of the identities in an export's sidecar."""
    source = record.source
    relations = tuple((relation.oid, relation.relfilenode) for relation in source.relations)
    return Place(
        source.system_identifier, source.timeline, source.database, relations, source.fingerprint, source.next_xid
    )


def place_now(session: Session, relation: RelationName) -> Place:
    """The place that the session's transaction sees. Lock the relation first, or it may change at once."""
    tree = inspect.relation_tree(session, relation.sql, only=relation.only)
    if tree.unsound:
        raise Unprovable(f"{tree.unsound}, so its rows cannot be proved", hint="cleanup works on ordinary tables")
    view = inspect.snapshot(session)
    return Place(
        view.system_identifier,
        view.timeline,
        view.database,
        tuple((r.oid, r.relfilenode) for r in tree.relations),
        inspect.fingerprint(session, tree.oids),
        view.next_xid,
    )


@contextmanager
def proof_of(
    ctx: StepContext, manifest: ArtifactManifest, parts: Statements, done: RecordSet, *, by_content: bool = False
) -> Iterator[Proof]:
    """What proves the rows of an archived file that are not in `done` (record numbers).

    With `by_content`, identities are not relied upon even where they are sound.

    Raises:
        Unprovable: nothing can prove them; the sentence says why.
    """
    identity = manifest.export.identity
    delete = parts.delete
    if identity.mode == "none" or manifest.identity_file is None or delete is None:
        raise Unprovable(
            f"rows of {ctx.table.id!r} partition {manifest.export.partition} cannot be proved: {identity.reason}",
            hint="let select.sql read the table as one of its FROM clause, or declare `key` with columns of the file",
        )
    spec = ctx.table.spec
    with source_of(ctx).session(
        timezone=spec.session_timezone, statement_timeout=spec.statement_timeout, lock_timeout=spec.lock_timeout
    ) as session:
        session.begin()
        session.execute(f"LOCK TABLE {delete.relation.sql} IN ACCESS SHARE MODE")
        now = place_now(session, delete.relation)
        recorded = place_of(manifest.export)
        if recorded.holds(now) and not by_content:
            session.rollback()
            with batches(
                ctx, manifest, done, repeats=_repeats(ctx, manifest), drop=2 * (identity.mode == "key")
            ) as found:
                yield Proof("key" if identity.mode == "key" else "row", recorded, identity.tableoid, found)
            return
        with matcher(manifest.export.rows) as matches:
            match = _match_records if identity.mode == "row" else _match_keys
            tableoid = match(ctx, session, manifest, parts, done, matches)
            session.rollback()
            yield Proof("content", now, tableoid, _from_matches(matches, ctx.table.spec.cleanup.batch_rows))


def _repeats(ctx: StepContext, manifest: ArtifactManifest) -> bool:
    """Whether a row of the source may stand behind several records of the file."""
    export = manifest.export
    return export.identity.mode == "row" and parse_select(export.select_sql, ctx.table.folder / "select.sql").repeats


def _match_records(
    ctx: StepContext,
    session: Session,
    manifest: ArtifactManifest,
    parts: Statements,
    done: RecordSet,
    matches: Matcher,
) -> bool:
    """Match what select.sql gives now with the records of the file, each record for one row at most."""
    export = manifest.export
    assert parts.delete is not None
    relation = relation_of(session, parts.select, parts.delete.relation)
    if relation is None:
        raise Unprovable(
            f"select.sql of {ctx.table.id!r} does not read {parts.delete.relation.sql} as it did at the export",
            hint="export the partition again",
        )
    if not refuse_vague_content(ctx, session, parts, relation):
        _refuse_superseded(ctx, manifest)
    tableoid = needs_tableoid(session, relation, parts.delete.relation)
    if not export.exact:
        raise Unprovable(
            f"{relation.sql} was rewritten or altered since the export of {ctx.table.id!r}, and its {export.format} "
            "file does not give back the text of its rows, so that its content proves nothing",
            hint="export the partition again, then clean up",
        )
    number = 0
    with open_stored(ctx.archive, manifest.file, ctx.keyring) as stream:
        raw = decompressed(stream, Compression(export.compression), name=manifest.file.key)
        for found in records_in(export, raw):
            matches.add_records(*_wanted(found, number, done))
            number += len(found)
    header = keys.PLAIN.model_copy(update={**export.csv.model_dump(), "header": False})

    def take(found: list[bytes]) -> None:
        identities, contents = split_identities(found, export.csv)
        matches.add_rows(contents, identities)

    with keys.batched(take) as write:
        query = parts.select.with_identity(relation, tableoid=tableoid)
        session.copy_out(query, copy_options(header), write)
    return tableoid


def _refuse_superseded(ctx: StepContext, manifest: ArtifactManifest) -> None:
    """Refuse where equal rows may be several, and a later file of the partition has those of this one that are left: a
    record of each would prove a row, of two that are one."""
    export = manifest.export
    rows = ctx.catalog.exports(ctx.table.id, export.partition)
    if any(row.state == "archived" and row.generation > export.generation for row in rows):
        raise Unprovable(
            f"the content of {ctx.table.id!r} partition {export.partition}, generation {export.generation}, proves "
            "nothing beside that of a later generation, since the table has no key",
            hint="the later one proves what is left",
        )


def refuse_vague_content(ctx: StepContext, session: Session, parts: Statements, relation: RelationName) -> bool:
    """Refuse where equal records need not be of equal rows: the file has neither a key of the table nor all of it.
    Returns whether no two rows can be equal."""
    tree = inspect.relation_tree(session, relation.sql, only=relation.only)
    had = {name for name in inspect.origins(session, parts.select.query, tree.oids) if name}
    key = ctx.table.spec.key or inspect.primary_key(session, relation.sql)
    if parts.select.repeats:
        raise Unprovable(
            f"{relation.sql} was rewritten or altered since the export of {ctx.table.id!r}, and its file may have "
            "several records of one row, so that its content does not tell rows apart",
            hint="export the partition again, then clean up",
        )
    if key and had.issuperset(key) and inspect.is_unique(session, relation.sql, key):
        return True
    if had.issuperset(column.name for column in inspect.columns(session, f"SELECT * FROM {relation.sql}")):
        return False
    raise Unprovable(
        f"{relation.sql} was rewritten or altered since the export of {ctx.table.id!r}, and its file has neither a key "
        "of it nor all its columns to know the rows by",
        hint="export the partition again, then clean up",
    )


def _match_keys(
    ctx: StepContext,
    session: Session,
    manifest: ArtifactManifest,
    parts: Statements,
    done: RecordSet,
    matches: Matcher,
) -> bool:
    """Match key and MD5 of the rows that delete.sql selects now with those of the sidecar."""
    identity = manifest.export.identity
    assert parts.delete is not None and manifest.identity_file is not None
    relation = parts.delete.relation
    tableoid = needs_tableoid(session, relation)
    number = 0
    with open_stored(ctx.archive, manifest.identity_file, ctx.keyring) as stream:
        for bucket, raw in read_buckets(stream, identity):
            contents = [_content(line) for line in raw.splitlines()]
            matches.add_records(*_wanted(contents, number, done))
            number += bucket.rows

    def take(found: list[bytes]) -> None:
        lines = [line for line, key in pg_keys.sidecar_lines(found) if key is not None]
        matches.add_rows([_content(line) for line in lines], [line[: -_CONTENT - 1] for line in lines])

    with keys.batched(take) as write:
        columns = pg_keys.selected(relation, tableoid, identity.key)
        session.copy_out(parts.delete.selection(columns), copy_options(keys.PLAIN), write)
    return tableoid


def _content(line: bytes) -> bytes:
    """MD5 of the row and digest of its key, of a line of a sidecar in mode `key`."""
    return line[-_CONTENT:]


def _wanted(contents: list[bytes], first: int, done: RecordSet) -> tuple[list[bytes], Sequence[int]]:
    """Contents, and their numbers counted from `first`; without those in `done`."""
    if not done.touches(first, first + len(contents) - 1):
        return contents, range(first, first + len(contents))
    kept = [(content, n) for n, content in enumerate(contents, start=first) if n not in done]
    return [content for content, _ in kept], [n for _, n in kept]


def _from_matches(matches: Matcher, batch_rows: int) -> Iterator[Batch]:
    for number, (identities, ordinals) in enumerate(matches.matches(batch_rows)):
        yield Batch(number, identities, ordinals)


def conditions(qualifier: str, tableoid: bool, identities: list[bytes]) -> list[str]:
    """SQL conditions that select these identities' ctids, one for each table that they are in."""
    tables: dict[bytes, list[bytes]] = {}
    for identity in identities:
        table = identity[: identity.index(b",")] if tableoid else b""
        tables.setdefault(table, []).append(identity[identity.index(b'"') :])
    found = []
    for table, ctids in tables.items():
        array = b",".join(ctids).decode()
        condition = f"{qualifier}.ctid = ANY('{{{array}}}'::tid[])"
        found.append(f"{qualifier}.tableoid = {int(table)} AND {condition}" if tableoid else condition)
    return found


def ctid_span(relation: RelationName, identities: list[bytes]) -> str | None:
    """An SQL condition for what lies from the first to the last of identities without a tableoid; None if that would be
    much more than they are."""
    first, last = (identity[identity.index(b"(") : -1].decode() for identity in (identities[0], identities[-1]))
    pages = _block(last) - _block(first) + 1
    if not 0 < pages * _DENSE_ROWS <= len(identities):
        return None
    name = relation.qualifier
    return f"{name}.ctid >= '{first}'::tid AND {name}.ctid <= '{last}'::tid"


def _block(ctid: str) -> int:
    return int(ctid[1 : ctid.index(",")])


def identities_by(
    session: Session,
    statement: Callable[[str, str], str],
    qualifier: str,
    tableoid: bool,
    condition: str,
    *,
    expected: list[bytes] | None = None,
) -> list[bytes]:
    """Run a statement, made from a condition and the columns to return; the identities that it returns, as lines of a
    sidecar. A condition on ctids says nothing of xmin: that is for the caller to compare.

    Give `expected` if these (without tableoid) will most likely be returned, in this order: it is quicker then, and
    the list itself comes back.
    """
    parts: list[bytes] = []
    query = statement(condition, identity_columns(qualifier, tableoid=tableoid))
    if expected is None:
        session.copy_out(query, copy_options(keys.PLAIN), parts.append)
        return b"".join(parts).splitlines()
    session.copy_out(query, "FORMAT binary", parts.append)
    data = b"".join(parts)
    return expected if data == encoded(expected) else decoded(data)
