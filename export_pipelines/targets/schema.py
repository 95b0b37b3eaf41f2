"""The schema `operations` in a target database: made and migrated by the first load that needs it."""

from __future__ import annotations

from export_pipelines.errors import SourceError, TargetError
from export_pipelines.sources.postgres import Session

_LOCK = 0x6578706F72746C64
_NO_RIGHT = "42501"

_FIRST = """
CREATE TABLE operations.datafile_registry (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  source text NOT NULL,
  file_name text NOT NULL,
  state text NOT NULL CHECK (state IN ('processing', 'failed', 'processed', 'ignored')),
  error_message text,
  created timestamptz NOT NULL DEFAULT now(),
  updated timestamptz NOT NULL DEFAULT now(),
  target_table text NOT NULL,
  landing text NOT NULL,
  sequence bigint NOT NULL,
  file_version text NOT NULL,
  sha256 text NOT NULL,
  partition text NOT NULL,
  definition_version text NOT NULL,
  run_id text NOT NULL,
  attempts integer NOT NULL DEFAULT 1,
  started_at timestamptz NOT NULL DEFAULT now(),
  rows bigint,
  quarantined bigint,
  added bigint,
  changed bigint,
  removed bigint,
  table_version integer,
  UNIQUE (target_table, landing, definition_version)
);
CREATE INDEX ON operations.datafile_registry (target_table, sequence);
COMMENT ON TABLE operations.datafile_registry IS
  'Files that were loaded, or tried to be. An entry turns processed in the transaction that changes its table.';
COMMENT ON COLUMN operations.datafile_registry.landing IS
  'What identifies a landed file: SHA-256 over its place in the chain, name, version and content';
CREATE TABLE operations.loaded_table (
  target_table text PRIMARY KEY,
  current_version integer NOT NULL,
  last_version integer NOT NULL,
  definition_version text NOT NULL,
  updated timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE operations.loaded_table IS 'Which version of a table its view shows';
CREATE TABLE operations.table_version (
  target_table text NOT NULL,
  version integer NOT NULL,
  rows bigint NOT NULL,
  digest text NOT NULL,
  registry_id bigint,
  created timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (target_table, version)
);
COMMENT ON TABLE operations.table_version IS 'Versions of tables that are kept for a rollback';
CREATE TABLE operations.table_block (
  target_table text NOT NULL,
  version integer NOT NULL,
  block integer NOT NULL,
  rows bigint NOT NULL,
  digest numeric NOT NULL,
  PRIMARY KEY (target_table, version, block)
);
COMMENT ON TABLE operations.table_block IS
  'Digests of the current version of tables of style shadow, by blocks of their keys';
CREATE TABLE operations.table_migration (
  target_table text NOT NULL,
  name text NOT NULL,
  sha256 text NOT NULL,
  applied timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (target_table, name)
);
COMMENT ON TABLE operations.table_migration IS 'Files ver/NNN_*.sql that were run on a table'
"""

MIGRATIONS = (_FIRST,)


def ensure(session: Session) -> None:
    """Make the schema or bring it to this version. Cheap when it is; transactions of its own.

    Raises:
        TargetError: it was made by a newer program, or the role may not make it.
    """
    session.begin()
    found = _version(session)
    session.rollback()
    if found == len(MIGRATIONS):
        return
    try:
        _migrate(session)
    except SourceError as error:
        if error.code != _NO_RIGHT:
            raise
        raise TargetError(
            f"schema operations of the target cannot be made: {error.message}",
            hint="grant the role of the connection CREATE on the database, for the first load at least",
        ) from error


def _migrate(session: Session) -> None:
    session.begin()
    session.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    session.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    found = _version(session)
    if found > len(MIGRATIONS):
        raise TargetError(
            f"schema operations of the target has version {found}, this program knows {len(MIGRATIONS)}",
            hint="use the newer program",
        )
    session.execute("CREATE SCHEMA IF NOT EXISTS operations")
    session.execute("CREATE TABLE IF NOT EXISTS operations.loading_version (version integer NOT NULL)")
    for number in range(found, len(MIGRATIONS)):
        session.execute(MIGRATIONS[number])
    session.execute("DELETE FROM operations.loading_version")
    session.execute("INSERT INTO operations.loading_version VALUES (%s)", (len(MIGRATIONS),))
    session.commit()


def _version(session: Session) -> int:
    # Not to_regclass(): after a wait for a lock it may still say what it said before.
    if not session.execute(
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE nspname = 'operations' AND relname = 'loading_version'"
    ):
        return 0
    found = session.execute("SELECT version FROM operations.loading_version")
    return int(found[0][0]) if found else 0
