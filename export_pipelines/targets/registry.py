"""Entries of operations.datafile_registry: one for each landed file, table and version of the definition."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export_pipelines.sources.postgres import Session

if TYPE_CHECKING:
    from export_pipelines.manifest import LandedManifest

_BEGIN = """
INSERT INTO operations.datafile_registry AS r (source, file_name, state, target_table, landing, sequence, file_version,
  sha256, partition, definition_version, run_id)
VALUES (%(source)s, %(file_name)s, 'processing', %(target_table)s, %(landing)s, %(sequence)s, %(file_version)s,
  %(sha256)s, %(partition)s, %(definition_version)s, %(run_id)s)
ON CONFLICT (target_table, landing, definition_version) DO UPDATE SET attempts = r.attempts + 1, run_id = %(run_id)s,
  started_at = now(), updated = now(), error_message = NULL,
  state = CASE r.state WHEN 'processed' THEN r.state ELSE 'processing' END
RETURNING id, state
"""

_ADD = """
INSERT INTO operations.datafile_registry (id, source, file_name, state, target_table, landing, sequence, file_version,
  sha256, partition, definition_version, run_id, rows, quarantined, added, changed, removed, table_version)
OVERRIDING SYSTEM VALUE
VALUES (%(id)s, %(source)s, %(file_name)s, 'processed', %(target_table)s, %(landing)s, %(sequence)s, %(file_version)s,
  %(sha256)s, %(partition)s, %(definition_version)s, %(run_id)s, %(rows)s, %(quarantined)s, %(added)s, %(changed)s,
  %(removed)s, %(table_version)s)
"""

_FINISH = """
UPDATE operations.datafile_registry SET state = 'processed', error_message = NULL, updated = now(), rows = %(rows)s,
  quarantined = %(quarantined)s, added = %(added)s, changed = %(changed)s, removed = %(removed)s,
  table_version = %(table_version)s
WHERE id = %(id)s
"""


@dataclass(frozen=True)
class Counts:
    """What a load did to its table, in rows."""

    rows: int = 0
    quarantined: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    table_version: int = 0


def landing_id(landed: LandedManifest) -> str:
    """What identifies a landed file: where it is in its chain, its name, version and content. It does not change when
    manifests get more fields."""
    parts = [landed.table, landed.sequence, landed.source, landed.name, landed.version, landed.file.raw_sha256]
    text = json.dumps([*parts, landed.file.sha256, landed.fetched.isoformat()], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def begin_entry(
    session: Session, table: str, landed: LandedManifest, definition_version: str, run_id: str
) -> tuple[int, str]:
    """Note that the file is at work, in a transaction of its own; the entry's id and state. One that is `processed`
    stays so."""
    session.begin()
    session.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    entry, state = session.one(_BEGIN, _values(table, landed, definition_version, run_id))
    session.commit()
    return int(entry), str(state)


def reserve(session: Session) -> int:
    """The id of an entry that `add` is to make."""
    return int(session.one("SELECT nextval(pg_get_serial_sequence('operations.datafile_registry', 'id'))")[0])


def add(
    session: Session,
    entry: int,
    table: str,
    landed: LandedManifest,
    definition_version: str,
    run_id: str,
    counts: Counts,
) -> None:
    """Make an entry that is `processed`, within the transaction that changed the table."""
    session.execute(_ADD, {"id": entry, **_values(table, landed, definition_version, run_id), **counts.__dict__})


def _values(table: str, landed: LandedManifest, definition_version: str, run_id: str) -> dict[str, object]:
    return {
        "source": landed.table,
        "file_name": landed.name,
        "target_table": table,
        "landing": landing_id(landed),
        "sequence": landed.sequence,
        "file_version": landed.version,
        "sha256": landed.file.raw_sha256,
        "partition": landed.partition,
        "definition_version": definition_version,
        "run_id": run_id,
    }


def state_of(session: Session, entry: int) -> str:
    """State of an entry, which is locked until the transaction ends."""
    return str(session.one("SELECT state FROM operations.datafile_registry WHERE id = %s FOR UPDATE", (entry,))[0])


def counts_of(session: Session, entry: int) -> Counts:
    """What the load of an entry did."""
    columns = "rows, quarantined, added, changed, removed, table_version"
    found = session.one(f"SELECT {columns} FROM operations.datafile_registry WHERE id = %s", (entry,))
    return Counts(*(int(value or 0) for value in found))


def finish(session: Session, entry: int, counts: Counts) -> None:
    """Turn the entry `processed`, within the transaction that changed the table."""
    session.execute(_FINISH, {"id": entry, **counts.__dict__})


def fail(session: Session, entry: int, message: str) -> None:
    """Note a failure, in a transaction that the caller commits. What is processed stays so."""
    session.execute(
        "UPDATE operations.datafile_registry SET error_message = %s, updated = now(), "
        "state = CASE state WHEN 'processing' THEN 'failed' ELSE state END WHERE id = %s",
        (message.replace("\0", "")[:4000], entry),
    )


def set_ignored(session: Session, entry: int, reason: str) -> None:
    """Note that a file is not to be loaded, within the caller's transaction, unless it was loaded meanwhile."""
    session.execute(
        "UPDATE operations.datafile_registry SET state = 'ignored', error_message = %s, updated = now() "
        "WHERE id = %s AND state <> 'processed'",
        (reason, entry),
    )


def later_entries(session: Session, table: str, landed: LandedManifest, *, same_name: bool = False) -> list[int]:
    """Ids of processed entries of what landed later, with `same_name` of its name only. What landed for another
    definition of the table is earlier."""
    found = session.execute(
        "SELECT id FROM operations.datafile_registry WHERE target_table = %s AND source = %s AND sequence > %s "
        "AND state = 'processed' AND (file_name = %s OR NOT %s)",
        (table, landed.table, landed.sequence, landed.name, same_name),
    )
    return [int(row[0]) for row in found]


def other_definition(session: Session, table: str, source: str) -> str | None:
    """Which definition has loaded a table, if `source` has not."""
    rows = "FROM operations.datafile_registry WHERE target_table = %s AND state = 'processed'"
    if session.one(f"SELECT EXISTS (SELECT {rows} AND source = %s)", (table, source))[0]:
        return None
    found = session.execute(f"SELECT source {rows} ORDER BY id DESC LIMIT 1", (table,))
    return str(found[0][0]) if found else None


def earlier_may_come(session: Session, table: str, landed: LandedManifest) -> bool:
    """Whether what landed earlier is neither loaded nor ignored, and may be loaded after this."""
    (settled,) = session.one(
        "SELECT count(DISTINCT sequence) FROM operations.datafile_registry "
        "WHERE target_table = %s AND source = %s AND sequence < %s AND state IN ('processed', 'ignored')",
        (table, landed.table, landed.sequence),
    )
    return int(settled) < landed.sequence - 1


def sources(session: Session, beginning: str) -> list[str]:
    """What was loaded or tried: ids of definitions that begin so, in order."""
    found = session.execute(
        "SELECT DISTINCT source FROM operations.datafile_registry WHERE starts_with(source, %s) ORDER BY 1",
        (beginning,),
    )
    return [str(row[0]) for row in found]


def not_loaded(session: Session, table: str, state: str) -> set[str]:
    """The landed files that were never loaded and are `failed`, or `ignored`."""
    found = session.execute(
        "SELECT landing FROM operations.datafile_registry WHERE target_table = %s GROUP BY landing "
        "HAVING bool_or(state = %s) AND NOT bool_or(state = 'processed')",
        (table, state),
    )
    return {str(row[0]) for row in found}


def earlier_entries(session: Session, table: str, landed: LandedManifest, *, same_name: bool) -> list[int]:
    """Ids of processed entries of the same landed file, or with `same_name` of all files of its name until then."""
    where = "landing = %s"
    values: list[str | int] = [landing_id(landed)]
    if same_name:
        where = "(landing = %s OR (file_name = %s AND (sequence < %s OR source <> %s)))"
        values += [landed.name, landed.sequence, landed.table]
    found = session.execute(
        f"SELECT id FROM operations.datafile_registry WHERE target_table = %s AND state = 'processed' AND {where}",
        (table, *values),
    )
    return [int(row[0]) for row in found]


def settled(session: Session, table: str, landings: Iterable[str]) -> set[str]:
    """Those of the landed files that are processed or ignored, under any version of the definition."""
    found = session.execute(
        "SELECT DISTINCT landing FROM operations.datafile_registry "
        "WHERE target_table = %s AND landing = ANY(%s) AND state IN ('processed', 'ignored')",
        (table, list(landings)),
    )
    return {str(row[0]) for row in found}
