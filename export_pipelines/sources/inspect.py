"""Questions to the server about itself and its tables, asked inside of a session's transaction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from export_pipelines.errors import SourceError
from export_pipelines.manifest import Column, Relation, Snapshot
from export_pipelines.sources.postgres import PINNED, Session

_SERVER = """
SELECT current_setting('server_version'), current_database()::text,
       (SELECT system_identifier::text FROM pg_control_system()),
       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
       pg_current_snapshot()::text, pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
       current_setting('TimeZone')
"""

_TREE = """
WITH RECURSIVE tree AS (
  SELECT to_regclass(%(name)s)::oid AS oid
  UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid WHERE %(children)s)
SELECT c.oid::bigint, format('%%I.%%I', n.nspname, c.relname), coalesce(pg_relation_filenode(c.oid), 0)::bigint,
       c.relkind::text, coalesce(am.amname, '')::text
FROM tree JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_am am ON am.oid = c.relam ORDER BY c.oid
"""

# Enum labels and domains count: renaming a label changes the text of rows whose identity stays.
_FINGERPRINT = """
WITH RECURSIVE used AS (
  SELECT atttypid AS oid FROM pg_attribute WHERE attrelid = ANY(%(oids)s::oid[]) AND attnum > 0 AND NOT attisdropped
  UNION SELECT unnest(ARRAY[t.typelem, t.typbasetype] ||
      coalesce((SELECT array_agg(a.atttypid) FROM pg_attribute a WHERE a.attrelid = t.typrelid AND t.typrelid <> 0
                AND a.attnum > 0 AND NOT a.attisdropped), '{}'::oid[]) ||
      coalesce((SELECT array_agg(r.rngsubtype) FROM pg_range r WHERE r.rngtypid = t.oid), '{}'::oid[]))
  FROM used JOIN pg_type t USING (oid))
SELECT coalesce((SELECT string_agg(format('%%s %%s %%I %%s', attrelid, attnum, attname,
                                 format_type(atttypid, atttypmod)),
                          E'\\n' ORDER BY attrelid, attnum)
        FROM pg_attribute WHERE attrelid = ANY(%(oids)s::oid[]) AND attnum > 0 AND NOT attisdropped), ''),
       coalesce((SELECT string_agg(format('%%s %%L', enumtypid, enumlabel), E'\\n' ORDER BY enumtypid, enumsortorder)
        FROM pg_enum WHERE enumtypid IN (SELECT oid FROM used)), ''),
       coalesce((SELECT string_agg(format('%%s %%I %%s', attrelid, attname, format_type(atttypid, atttypmod)),
                          E'\\n' ORDER BY attrelid, attnum)
        FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped AND attrelid IN
             (SELECT typrelid FROM pg_type WHERE oid IN (SELECT oid FROM used) AND typrelid <> 0)), '')
"""

_SIDE_EFFECTS = """
SELECT 'trigger', tgname::text, tgrelid::regclass::text FROM pg_trigger
 WHERE tgrelid = ANY(%(oids)s::oid[]) AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 8 <> 0
UNION ALL SELECT 'rule', rulename::text, ev_class::regclass::text FROM pg_rewrite
 WHERE ev_class = ANY(%(oids)s::oid[]) AND ev_type = '4' AND ev_enabled <> 'D'
UNION ALL SELECT CASE confdeltype WHEN 'c' THEN 'ON DELETE CASCADE' WHEN 'n' THEN 'ON DELETE SET NULL'
                 ELSE 'ON DELETE SET DEFAULT' END, conname::text, conrelid::regclass::text
 FROM pg_constraint k WHERE confrelid = ANY(%(oids)s::oid[]) AND contype = 'f' AND confdeltype IN ('c', 'n', 'd')
   -- Of a partitioned table each partition has a copy of its own name.
   AND NOT EXISTS (SELECT FROM pg_constraint p WHERE p.oid = k.conparentid AND p.confrelid = ANY(%(oids)s::oid[]))
ORDER BY 1, 2, 3
"""

_PRIMARY_KEY = """
SELECT a.attname::text FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(attnum, position)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = to_regclass(%s) AND i.indisprimary ORDER BY k.position
"""

_UNIQUE = """
SELECT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = to_regclass(%(name)s) AND i.indisunique AND i.indisvalid
  AND i.indpred IS NULL AND i.indexprs IS NULL AND NOT EXISTS (
    SELECT FROM unnest(i.indkey[0:i.indnkeyatts - 1]) AS k(attnum) WHERE NOT EXISTS (
      SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum = k.attnum
        AND a.attname = ANY(%(key)s))))
  AND NOT EXISTS (SELECT FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhparent
                  WHERE h.inhparent = to_regclass(%(name)s) AND c.relkind <> 'p')
"""

_NAMES = """
SELECT coalesce(a.attname, '')::text, coalesce(c.relkind IN ('v', 'm'), true)
FROM unnest(%s::oid[], %s::int[]) WITH ORDINALITY AS o(relation, number, position)
LEFT JOIN pg_class c ON c.oid = o.relation
LEFT JOIN pg_attribute a ON a.attrelid = o.relation AND a.attnum = o.number
ORDER BY o.position
"""


@dataclass(frozen=True)
class RelationTree:
    """A relation with its partitions and children, and whether row identities are sound for all of them."""

    relations: tuple[Relation, ...]
    unsound: str
    """Why ctid and xmin cannot be relied upon; empty when they can."""

    @property
    def heaps(self) -> tuple[Relation, ...]:
        """Those that hold rows."""
        return tuple(r for r in self.relations if r.relfilenode)

    @property
    def oids(self) -> list[int]:
        return [r.oid for r in self.relations]


@dataclass(frozen=True)
class SideEffect:
    """Something else that a DELETE sets off and RETURNING does not show."""

    kind: str
    name: str
    relation: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} on {self.relation}"


def snapshot(session: Session) -> Snapshot:
    """The server and the view that the session's transaction reads; takes the snapshot if there is none yet."""
    version, database, system, timeline, view, next_xid, zone = session.one(_SERVER)
    return Snapshot(
        server_version=version,
        database=database,
        system_identifier=system,
        timeline=timeline,
        snapshot=view,
        next_xid=next_xid,
        settings={**PINNED, "TimeZone": zone, "client_encoding": "UTF8"},
    )


def relation_tree(session: Session, name: str, *, only: bool = False) -> RelationTree:
    """The relation of that quoted name and what inherits from it.

    Raises:
        SourceError: there is none.
    """
    rows = session.execute(_TREE, {"name": name, "children": not only})
    if not rows:
        raise missing(name)
    kinds = {"f": "a foreign table", "v": "a view", "m": "a materialized view"}
    unsound = next((f"{n} is {kinds[kind]}" for _, n, _, kind, _ in rows if kind in kinds), "") or next(
        (f"{n} is stored by {am}, not in a heap" for _, n, _, kind, am in rows if kind == "r" and am != "heap"), ""
    )
    return RelationTree(tuple(Relation(oid=o, name=n, relfilenode=f) for o, n, f, _, _ in rows), unsound)


def fingerprint(session: Session, oids: list[int]) -> str:
    """SHA-256 over the columns, types and enum labels of relations; changes when the meaning of their rows may."""
    parts = session.one(_FINGERPRINT, {"oids": oids})
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def side_effects(session: Session, oids: list[int]) -> list[SideEffect]:
    """Delete triggers, rules and foreign keys with an ON DELETE action on relations."""
    return [SideEffect(*row) for row in session.execute(_SIDE_EFFECTS, {"oids": oids})]


def primary_key(session: Session, name: str) -> tuple[str, ...]:
    """Columns of the primary key of the relation of that quoted name; empty if it has none."""
    return tuple(row[0] for row in session.execute(_PRIMARY_KEY, (name,)))


def is_unique(session: Session, name: str, key: tuple[str, ...]) -> bool:
    """Whether a unique index of the relation has no other columns than those of `key`.

    Never so of a table that others inherit from (partitions excepted), whose rows no such index covers.
    """
    return bool(session.one(_UNIQUE, {"name": name, "key": list(key)})[0])


def same_relation(session: Session, one: str, other: str) -> bool:
    """Whether two quoted names mean the same relation in this session."""
    return bool(session.one("SELECT coalesce(to_regclass(%s) = to_regclass(%s), false)", (one, other))[0])


def origins(session: Session, query: str, oids: list[int]) -> list[str | None]:
    """Which column of the relations `oids` each column of a query plainly is: its name, "" if it is known to be none
    of theirs, None if the server cannot tell (expressions, set operations, views)."""
    traced = session.origins(query)
    named = session.execute(_NAMES, ([oid for oid, _ in traced], [number for _, number in traced]))
    return [
        None if unknown else name if oid in oids else ""
        for (oid, _), (name, unknown) in zip(traced, named, strict=True)
    ]


def columns(session: Session, query: str) -> tuple[Column, ...]:
    """The columns that a query gives, with their types as they would be declared."""
    described = session.describe(query)
    if not described:
        raise SourceError("the query has no columns", hint="a file needs at least one")
    # A bare `bit` would be declared as bit(1): where the length is not known, any length must fit.
    types = session.execute(
        "SELECT CASE WHEN t = 1560 AND m = -1 THEN 'bit varying' WHEN t = 1561 AND m = -1 THEN 'bit varying[]' "
        "WHEN typlen = -1 THEN format_type(t, m) ELSE format_type(t, NULL) END "
        "FROM unnest(%s::oid[], %s::int[]) WITH ORDINALITY AS c(t, m, n) JOIN pg_type ON pg_type.oid = t ORDER BY n",
        ([t for _, t, _ in described], [m for _, _, m in described]),
    )
    return tuple(Column(name=name, type=row[0]) for (name, _, _), row in zip(described, types, strict=True))


def missing(table: str) -> SourceError:
    """The error for a table that is not there."""
    return SourceError(f"table {table} does not exist", hint="check its name and schema, and the role's search_path")


def time_zone_of_column(session: Session, table: str, column: str) -> bool:
    """Whether the column of a table is a timestamp with time zone.

    Raises:
        SourceError: there is no such column, or it is no date or timestamp.
    """
    rows = session.execute(
        "SELECT format_type(a.atttypid, NULL) FROM pg_attribute a "
        "WHERE a.attrelid = to_regclass(%s) AND a.attname = %s AND NOT a.attisdropped",
        (table, column),
    )
    if not rows and session.one("SELECT to_regclass(%s) IS NULL", (table,))[0]:
        raise missing(table)
    kind = rows[0][0] if rows else "missing"
    if kind not in ("timestamp with time zone", "timestamp without time zone", "date"):
        raise SourceError(f"time_column {column!r} of {table} is {kind}", hint="it must be a date or a timestamp")
    return bool(kind == "timestamp with time zone")
