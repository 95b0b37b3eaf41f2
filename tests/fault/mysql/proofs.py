"""The proof: source and archive against the ledger in MariaDB, in SQL, on one snapshot of the source.

What `tests.fault.proofs` demands, and how, is demanded here. MySQL does not tell how a transaction ended, so of a batch
whose commit was not confirmed a receipt may name rows that users changed before anybody could look; those versions are
in `ledger.doubted`, and are excused where a receipt too many, but no row lost, is the consequence.
"""

from __future__ import annotations

import csv
import io
import json
from contextlib import closing
from typing import Any

import zstandard

from tests.fault.outside import Artifact, Outside, chain, living
from tests.fault.proofs import Violated
from tests.support.mariadb import mysql_connection

_TABLES = (
    "CREATE TEMPORARY TABLE ledger.archived (sequence INT, part VARCHAR(20), record INT, version BIGINT, life BIGINT, "
    "id VARCHAR(80), at DATETIME(6), note TEXT, amount VARCHAR(40), KEY (version), KEY (sequence, record))",
    "CREATE TEMPORARY TABLE ledger.receipted (sequence INT, artifact INT, record INT)",
)
_SAME = (
    "{0}.life <=> b.life AND {0}.id <=> b.id AND {0}.at <=> b.at AND {0}.note <=> b.note AND {0}.amount <=> b.amount"
)

LOST = """-- deleted by a cleanup, and in no verified archive of its partition
SELECT d.version, b.at, d.number FROM ledger.death d JOIN ledger.birth b USING (version)
LEFT JOIN ledger.archived a ON a.version = d.version AND a.part = DATE_FORMAT(b.at, '%%Y-%%m-%%d')
WHERE d.how = 'cleanup' AND d.number > %(excused)s AND a.version IS NULL
"""
DIFFERENT = f"""-- an archived record that does not say what its row version said
SELECT a.sequence, a.version, a.note, b.note FROM ledger.archived a LEFT JOIN ledger.birth b USING (version)
WHERE NOT ({_SAME.format("a")})
"""
VANISHED = """-- alive by the ledger, and not in the source
SELECT b.version, b.at FROM ledger.birth b LEFT JOIN ledger.death d USING (version) LEFT JOIN t USING (version)
WHERE d.version IS NULL AND t.version IS NULL
"""
UNDEAD = """-- in the source, and not alive by the ledger
SELECT t.version, t.at FROM t LEFT JOIN ledger.birth b USING (version) LEFT JOIN ledger.death d USING (version)
WHERE b.version IS NULL OR d.version IS NOT NULL
"""
TWICE_IN_THE_SOURCE = """-- a row that stands twice in the source
SELECT version, COUNT(*) FROM t GROUP BY version HAVING COUNT(*) > 1
"""
TWICE_IN_A_FILE = """-- a row that stands twice in one file
SELECT sequence, version, COUNT(*) FROM ledger.archived GROUP BY sequence, version HAVING COUNT(*) > 1
"""
FALSE_RECEIPTS = """-- a receipt of a row that no cleanup deleted
SELECT r.sequence, r.artifact, r.record, a.version, d.how FROM ledger.receipted r
JOIN ledger.archived a ON a.sequence = r.artifact AND a.record = r.record
LEFT JOIN ledger.death d ON d.version = a.version
WHERE NOT (d.how <=> 'cleanup') AND a.version NOT IN (SELECT version FROM ledger.doubted)
"""
RESTORED = {
    # Without a key a batch of which half is gone counts as deleted, see decision 0010: a row too many, and none lost.
    "given twice by the restore": "SELECT part, version, COUNT(*) FROM ledger.restored "
    "WHERE NOT (%(keyless)s AND version IN (SELECT version FROM ledger.doubted)) GROUP BY part, version "
    "HAVING COUNT(*) > 1",
    "two versions of one row given by the restore": "SELECT part, life, GROUP_CONCAT(version) FROM ledger.restored "
    "WHERE life NOT IN (SELECT life FROM ledger.birth JOIN ledger.doubted USING (version)) "
    "GROUP BY part, life HAVING COUNT(DISTINCT version) > 1",
    "deleted by a cleanup, and not given by the restore": "SELECT d.version, b.at FROM ledger.death d "
    "JOIN ledger.birth b USING (version) LEFT JOIN ledger.restored r USING (version) WHERE d.how = 'cleanup' "
    "AND r.version IS NULL AND FIND_IN_SET(DATE_FORMAT(b.at, '%%Y-%%m-%%d'), %(wanted)s)",
    "given by the restore with other content": "SELECT r.version, r.note, b.note FROM ledger.restored r "
    f"LEFT JOIN ledger.birth b USING (version) WHERE NOT ({_SAME.format('r')})",
}
AT_THE_END = {
    "given by the restore, and no cleanup deleted it": "SELECT r.part, r.version, d.how FROM ledger.restored r "
    "LEFT JOIN ledger.death d USING (version) WHERE NOT (d.how <=> 'cleanup') "
    "AND r.version NOT IN (SELECT version FROM ledger.doubted)",
    "left in the source": "SELECT version, at FROM t",
}


def prove_mysql(admin: str, outside: Outside, *, excused: int = 0) -> int:
    """Compare; return the number of archived records. Deaths up to number `excused` may be in a damaged file.

    Raises:
        Violated: with the rows that break a promise.
    """
    artifacts, receipts = outside.read()
    with closing(mysql_connection(admin)) as connection, connection.cursor() as cursor:
        for statement in _TABLES:
            cursor.execute(statement)
        records = _load(cursor, artifacts)
        _load_receipts(cursor, receipts, Numbers(outside, artifacts))
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        for query in (
            *(LOST, DIFFERENT, VANISHED, UNDEAD),
            *(TWICE_IN_THE_SOURCE, TWICE_IN_A_FILE, FALSE_RECEIPTS),
        ):
            _none(cursor, query, {"excused": excused})
    return records


def prove_mysql_restored(
    admin: str, partitions: list[str], *, exact: bool = True, keyless: bool = False, at_the_end: bool = False
) -> None:
    """Compare what restores gave, in the table `ledger.restored`, with the ledger. `exact` is false where a clock was
    wrong by which files had to be told apart: then a row may be given twice.

    Raises:
        Violated: with the rows that break a promise.
    """
    with closing(mysql_connection(admin)) as connection, connection.cursor() as cursor:
        for name, query in {**RESTORED, **(AT_THE_END if at_the_end else {})}.items():
            if exact or ("two versions" not in name and "twice" not in name and "no cleanup" not in name):
                _none(cursor, f"-- {name}\n{query}", {"wanted": ",".join(partitions), "keyless": keyless})


class Numbers:
    """What the numbers of a receipt stand for: records of the file, or lines of a sidecar that knows rows by key."""

    def __init__(self, outside: Outside, artifacts: list[Artifact]) -> None:
        self._objects = outside.objects()
        self._manifests = {m["sequence"]: m for m in living(chain(self._objects, outside.table))}
        self.records = {a.sequence: a.records for a in artifacts if a.records is not None}

    def record(self, sequence: int, number: int) -> int | None:
        """The record's number; None if the file is damaged or gone."""
        manifest, records = self._manifests.get(sequence), self.records.get(sequence)
        if manifest is None or records is None:
            return None
        if manifest["export"]["identity"]["mode"] != "key":
            return number
        data = self._objects[manifest["identity_file"]["key"]]
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
            line = reader.read().splitlines()[number]
        key = next(csv.reader([line.rsplit(b",", 2)[0].decode()]))
        return [record["id"] for record in records].index(key[0])


def _load(cursor: Any, artifacts: list[Artifact]) -> int:
    rows = [
        (a.sequence, a.partition, n, r["version"], r["life"], r["id"], r["at"], r["note"], r["amount"] or None)
        for a in artifacts
        for n, r in enumerate(a.records or ())
    ]
    cursor.executemany("INSERT INTO ledger.archived VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)", rows)
    return len(rows)


def _load_receipts(cursor: Any, receipts: list[dict[str, Any]], numbers: Numbers) -> None:
    rows = [
        (receipt["sequence"], receipt["artifact_sequence"], record)
        for receipt in receipts
        for first, last in receipt["deleted"]
        for number in range(first, last + 1)
        if (record := numbers.record(receipt["artifact_sequence"], number)) is not None
    ]
    cursor.executemany("INSERT INTO ledger.receipted VALUES (%s, %s, %s)", rows)


def _none(cursor: Any, query: str, values: dict[str, object]) -> None:
    """Raises Violated: the query gives rows."""
    cursor.execute(query, values)
    if found := cursor.fetchall():
        title = query.partition("\n")[0].removeprefix("-- ")
        raise Violated(f"{title}: {json.dumps(found[:5], default=str)}, {len(found)} in all")
