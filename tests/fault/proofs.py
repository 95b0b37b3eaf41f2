"""The proof: source and archive against the ledger, in SQL, on one snapshot of the source."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import psycopg2
from psycopg2.extras import execute_values

from tests.fault.outside import Artifact, Outside

_ARCHIVED = """
CREATE TEMP TABLE archived (sequence int, partition text, generation int, record int, version bigint, life bigint,
  id bigint, at timestamptz, note text, amount text);
CREATE TEMP TABLE receipted (sequence int, artifact int, record int);
CREATE TEMP TABLE damaged (version bigint);
"""

LOST = """-- deleted by a cleanup, and in no verified archive of its partition
SELECT d.version, b.at, d.number FROM ledger.death d JOIN ledger.birth b USING (version)
WHERE d.how = 'cleanup' AND d.number > %(excused)s AND NOT EXISTS (SELECT FROM archived a WHERE a.version = d.version
  AND a.partition = to_char(b.at AT TIME ZONE 'UTC', 'YYYY-MM-DD'))
"""
DIFFERENT = """-- an archived record that does not say what its row version said
SELECT a.sequence, a.version, a.note, b.note FROM archived a LEFT JOIN ledger.birth b USING (version)
WHERE (a.life, a.id, a.at, a.note, a.amount) IS DISTINCT FROM (b.life, b.id, b.at, b.note, b.amount)
"""
VANISHED = """-- alive by the ledger, and not in the source
SELECT version, at FROM ledger.birth b WHERE NOT EXISTS (SELECT FROM ledger.death d WHERE d.version = b.version)
  AND NOT EXISTS (SELECT FROM t WHERE t.version = b.version)
"""
UNDEAD = """-- in the source, and not alive by the ledger
SELECT version, at FROM t WHERE NOT EXISTS (SELECT FROM ledger.birth b WHERE b.version = t.version)
  OR EXISTS (SELECT FROM ledger.death d WHERE d.version = t.version)
"""
TWICE_IN_A_FILE = """-- a row that stands twice in one file
SELECT sequence, version, count(*) FROM archived GROUP BY sequence, version HAVING count(*) > 1
"""
FALSE_RECEIPTS = """-- a receipt of a row that no cleanup deleted
SELECT r.sequence, r.artifact, r.record, a.version, d.how FROM receipted r
JOIN archived a ON a.sequence = r.artifact AND a.record = r.record
LEFT JOIN ledger.death d ON d.version = a.version WHERE d.how IS DISTINCT FROM 'cleanup'
"""
RESTORED = {
    "given twice by the restore": "SELECT partition, version, count(*) FROM restored GROUP BY partition, version "
    "HAVING count(*) > 1",
    "two versions of one row given by the restore": "SELECT partition, life, array_agg(version) FROM restored "
    "GROUP BY partition, life HAVING count(DISTINCT version) > 1",
    "deleted by a cleanup, and not given by the restore": "SELECT d.version, b.at FROM ledger.death d "
    "JOIN ledger.birth b USING (version) WHERE d.how = 'cleanup' AND to_char(b.at AT TIME ZONE 'UTC', 'YYYY-MM-DD') "
    "IN (SELECT partition FROM wanted) AND NOT EXISTS (SELECT FROM restored r WHERE r.version = d.version)",
    "given by the restore with other content": "SELECT r.version, r.note, b.note FROM restored r "
    "LEFT JOIN ledger.birth b USING (version) WHERE (r.life, r.id, r.at, r.note, r.amount::text) "
    "IS DISTINCT FROM (b.life, b.id, b.at, b.note, b.amount)",
}
AT_THE_END = {
    "given by the restore, and no cleanup deleted it": "SELECT r.partition, r.version, d.how FROM restored r "
    "LEFT JOIN ledger.death d USING (version) WHERE d.how IS DISTINCT FROM 'cleanup'",
    "left in the source": "SELECT version, at FROM t",
}


class Violated(AssertionError):
    """A promise is broken."""


def prove(url: str, outside: Outside, *, excused: int = 0, receipts_exact: bool = True, by_key: bool = False) -> int:
    """Compare; return the number of archived records. Deaths up to number `excused` may be in a damaged file.

    Raises:
        Violated: with the rows that break a promise.
    """
    artifacts, receipts = outside.read()
    with closing(psycopg2.connect(url, application_name="suite")) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        cursor.execute(_ARCHIVED)
        records = _load(cursor, artifacts)
        _load_receipts(cursor, receipts, {a.sequence for a in artifacts if a.records is not None})
        for query in (LOST, DIFFERENT, VANISHED, UNDEAD, TWICE_IN_A_FILE):
            _none(cursor, query, {"excused": excused})
        if receipts_exact and not by_key:
            _none(cursor, FALSE_RECEIPTS)
    return records


def prove_restored(url: str, partitions: list[str], *, exact: bool = True, at_the_end: bool = False) -> None:
    """Compare what restores gave, in the table `restored`, with the ledger. `exact` is false where a server was asked
    for the outcome of a transaction that it no longer knew: then a row may be given in two versions.

    Raises:
        Violated: with the rows that break a promise.
    """
    with closing(psycopg2.connect(url, application_name="suite")) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE wanted AS SELECT unnest(%s::text[]) AS partition", (partitions,))
        checks = {**RESTORED, **(AT_THE_END if at_the_end else {})}
        for name, query in checks.items():
            if exact or ("two versions" not in name and name not in AT_THE_END):
                _none(cursor, f"-- {name}\n{query}")


def last_death(url: str) -> int:
    """The number of the last death that is noted."""
    return int(_one(url, "SELECT coalesce(max(number), 0) FROM ledger.death"))


def deaths(url: str, how: str) -> int:
    """How many versions ended that way."""
    return int(_one(url, f"SELECT count(*) FROM ledger.death WHERE how = '{how}'"))


def _one(url: str, query: str) -> Any:
    with closing(psycopg2.connect(url, application_name="suite")) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def _load(cursor: Any, artifacts: list[Artifact]) -> int:
    rows = [
        (a.sequence, a.partition, a.generation, n, r["version"], r["life"], r["id"], r["at"], r["note"], r["amount"])
        for a in artifacts
        for n, r in enumerate(a.records or ())
    ]
    execute_values(cursor, "INSERT INTO archived VALUES %s", rows, page_size=1000) if rows else None
    return len(rows)


def _load_receipts(cursor: Any, receipts: list[dict[str, Any]], intact: set[int]) -> None:
    rows = [
        (receipt["sequence"], receipt["artifact_sequence"], record)
        for receipt in receipts
        if receipt["artifact_sequence"] in intact
        for first, last in receipt["deleted"]
        for record in range(first, last + 1)
    ]
    execute_values(cursor, "INSERT INTO receipted VALUES %s", rows, page_size=1000) if rows else None


def _none(cursor: Any, query: str, values: dict[str, object] | None = None) -> None:
    """Raises Violated: the query gives rows."""
    cursor.execute(query, values)
    if found := cursor.fetchmany(5):
        title = query.partition("\n")[0].removeprefix("-- ")
        raise Violated(f"{title}: {json.dumps(found, default=str)}, {cursor.rowcount} in all")
