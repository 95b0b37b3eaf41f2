"""Deletion of the rows that archived files are proved to hold, by key and content.

MySQL has no DELETE … RETURNING, and MariaDB's says nothing of what was there a moment before. So each batch is one
transaction, the same on both:

1. a *locking read* of the batch's rows: the newest committed version of each, which nobody can change until the end;
2. each of them is compared, key and content, with the sidecar of the archived file;
3. exactly those that are proved are deleted, by key;
4. their number is compared with the server's, and the transaction is committed, or given up.

What delete.sql says is asked in step 1 alone, so that a condition that would say something else a moment later changes
nothing. Where all rows between two keys are proved and locked, they are deleted as the range that they are: at
REPEATABLE READ its gaps are locked too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from export_pipelines.catalog import ExportRow
from export_pipelines.errors import CleanupRefused, PartitionBusy, SourceError
from export_pipelines.manifest import ArtifactManifest
from export_pipelines.sources import mysql_inspect
from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.sources.mysql_errors import CONFLICTS, READ_ONLY
from export_pipelines.sources.mysql_inspect import UNSEEN, BaseTable
from export_pipelines.sql_mysql import MysqlDelete, parse_select
from export_pipelines.steps.batches import Batch, batches, proved
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import ATTEMPTS, Deleted, Matched, Seen, Unprovable
from export_pipelines.steps.mysql.keyless import delete_keyless, match_keyless
from export_pipelines.steps.mysql.left import left
from export_pipelines.steps.mysql.locating import Locator, locator
from export_pipelines.steps.mysql.reading import EQUAL_ROWS
from export_pipelines.steps.mysql.statements import MysqlStatements
from export_pipelines.steps.mysql.transactions import lock, table_session
from export_pipelines.steps.receipts import RecordSet, deleted_records, to_ranges
from export_pipelines.windows import Window


@dataclass(frozen=True)
class MysqlDeletion:
    """See `steps.engine.Deletion`."""

    ctx: StepContext
    window: Window
    parts: MysqlStatements
    statement: MysqlDelete

    @property
    def sql(self) -> str:
        return (
            f"{self.statement.selection('<key>, <all columns>', '<key of an archived row>')} FOR UPDATE; "
            f"DELETE FROM {self.statement.relation.sql} WHERE <key of a row that is proved>"
        )

    def delete(self, row: ExportRow, manifest: ArtifactManifest, done: RecordSet) -> Iterator[Deleted]:
        self._refuse_unprovable(manifest)
        with table_session(self.ctx, read_only=False) as session:
            lock(session, self.ctx.table, "*", "cleaned up")
            done = self._deleted_by_now(row)
            self._refuse_writing(session)
            if not manifest.export.identity.key:
                yield from delete_keyless(self, session, row, manifest, done)
                return
            with batches(self.ctx, manifest, done, repeats=self._repeats(manifest), drop=_dropped(manifest)) as found:
                for batch in found:
                    yield Deleted(self._patiently(session, row, manifest, batch), manifest.export.identity.mode)

    def match(self, row: ExportRow, manifest: ArtifactManifest, done: RecordSet, seen: Seen) -> Iterator[Matched]:
        self._refuse_unprovable(manifest)
        with table_session(self.ctx, read_only=True) as session:
            session.begin()
            self._refuse_doubtful(session)
            table = self.table(session, manifest)
            refusals = tuple(self.refused(session, table))
            kind = manifest.export.identity.mode
            if not manifest.export.identity.key:
                rows = match_keyless(self, session, table, row, manifest, done, seen)
                yield Matched(rows, rows * _row_size(session, table), kind, refusals)
                return
            at = locator(session, table, self.statement, manifest.export.identity.key)
            with batches(self.ctx, manifest, done, repeats=self._repeats(manifest), drop=_dropped(manifest)) as found:
                for batch in found:
                    fresh = seen.new(set(at.read(batch.identities, lock=False).matched) & set(batch.identities))
                    yield Matched(len(fresh), len(fresh) * _row_size(session, table), kind, refusals)

    def left(self, latest: ArtifactManifest) -> tuple[int, int]:
        with table_session(self.ctx, read_only=True) as session:
            session.begin()
            return left(session, self.parts, self.statement, latest)

    def table(self, session: MysqlSession, manifest: ArtifactManifest) -> BaseTable:
        """The table as it is now, which a lock of the transaction keeps as it is from here on.

        Raises:
            Unprovable: it is not what it was at the export, so that its text may be another, or its key none.
            SourceError: also if the account may not see all of its columns, which would not be compared.
        """
        relation = self.statement.relation
        session.execute(f"SELECT * FROM {relation.sql} LIMIT 0")
        found = mysql_inspect.base_table(session, relation.schema, relation.name)
        if found.unsound:
            raise Unprovable(f"{found.unsound}, so its rows cannot be proved", hint="cleanup works on InnoDB tables")
        if found.fingerprint != manifest.export.source.fingerprint:
            raise Unprovable(
                f"columns of {found.sql} were added, dropped or altered since the export of {self.ctx.table.id!r}, so "
                "that the text of its rows may be another",
                hint="export the partition again, then clean up",
            )
        key = manifest.export.identity.key
        if key and not found.has_key(key):
            raise Unprovable(
                f"{found.sql} has no unique index on {list(key)} any more, by which its rows were told apart",
                hint="export the partition again, then clean up",
            )
        return found

    def refused(self, session: MysqlSession, table: BaseTable) -> list[str]:
        """What a deletion would set off that the definition does not acknowledge."""
        acknowledged = set(self.ctx.table.spec.cleanup.acknowledge)
        return [str(e) for e in mysql_inspect.side_effects(session, table) if e.name not in acknowledged]

    def refuse_side_effects(self, session: MysqlSession, table: BaseTable) -> None:
        """Raises CleanupRefused."""
        if refused := self.refused(session, table):
            hint = "name them under `cleanup: acknowledge:` in defs.yaml if that is meant"
            if any(UNSEEN in each for each in refused):
                hint = (
                    f"GRANT PROCESS ON *.* to the account of the cleanup, which shows them; else acknowledge {UNSEEN}"
                )
            raise CleanupRefused(f"deleting from {table.sql} would also set off {'; '.join(refused)}", hint=hint)

    def commit(self, session: MysqlSession, row: ExportRow, number: int, ordinals: list[int], kind: str) -> None:
        """Commit what was deleted, between two notes in the catalog."""
        batch_id = self.ctx.catalog.begin_batch(
            row.id,
            number,
            0,
            to_ranges(ordinals),
            kind,
            self.ctx.run_id,
            cumulative=bool(self.ctx.table.spec.cumulative),
        )
        session.commit()
        self.ctx.catalog.settle_batch(batch_id, committed=True)

    def patiently(self, session: MysqlSession, work: Callable[[], int]) -> int:
        """Do the work of one transaction; on a conflict with other sessions, again."""
        for attempt in range(ATTEMPTS):
            try:
                return work()
            except SourceError as error:
                with suppress(SourceError):
                    session.rollback()
                if error.code not in CONFLICTS or attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.05 * 2**attempt)
            except BaseException:
                with suppress(SourceError):
                    session.rollback()
                raise
        raise AssertionError("unreachable")

    def _deleted_by_now(self, row: ExportRow) -> RecordSet:
        """Records of a file whose rows are deleted, as it is once the lock is ours: until then another run may have
        deleted some, and equal rows without a key have come since.

        Raises:
            PartitionBusy: such a run was broken off, and nobody has settled its batch.
        """
        if self.ctx.catalog.batches(self.ctx.table.id, row.partition, states=("committing",)):
            raise PartitionBusy(
                f"another cleanup of {self.ctx.table.id!r} was broken off just now",
                hint="run the cleanup again: it settles what the other one left",
            )
        return deleted_records(self.ctx, row)

    def _refuse_writing(self, session: MysqlSession) -> None:
        """Raises CleanupRefused: delete.sql calls a function that writes, by the server's word or by nobody's denial.

        The server says so before it looks at a single row, also of functions within functions and views.
        """
        self._refuse_doubtful(session)
        session.execute("START TRANSACTION READ ONLY")
        try:
            session.execute(f"{self.statement.selection('1')} LIMIT 0")
        except SourceError as error:
            if error.code != READ_ONLY:
                raise
            raise CleanupRefused(
                f"delete.sql of {self.ctx.table.id!r} calls a function that writes",
                hint="a condition only reads: write it without that function",
            ) from error
        finally:
            with suppress(SourceError):
                session.rollback()

    def _refuse_doubtful(self, session: MysqlSession) -> None:
        if found := mysql_inspect.doubtful_functions(session, self.statement.called):
            raise CleanupRefused(
                f"delete.sql of {self.ctx.table.id!r} calls {', '.join(found)}, which may do more than read",
                hint="if it only reads, say so: ALTER FUNCTION … READS SQL DATA; else leave it out",
            )

    def _patiently(self, session: MysqlSession, row: ExportRow, manifest: ArtifactManifest, batch: Batch) -> int:
        return self.patiently(session, lambda: self._try_batch(session, row, manifest, batch))

    def _try_batch(self, session: MysqlSession, row: ExportRow, manifest: ArtifactManifest, batch: Batch) -> int:
        session.begin()
        table = self.table(session, manifest)
        self.refuse_side_effects(session, table)
        at = locator(session, table, self.statement, manifest.export.identity.key)
        read = at.read(batch.identities, lock=True)
        wanted = set(batch.identities)
        gone = [identity for identity in read.matched if identity in wanted]
        if not gone:
            session.rollback()
            return 0
        deleted = at.delete_range(read) if read.whole and len(gone) == read.rows else at.delete(gone)
        ordinals = proved(gone, batch)
        if deleted != len(gone) or ordinals is None or self._still_there(at, gone):
            raise CleanupRefused(
                f"the deletion from {table.sql} took {deleted} rows where {len(gone)} were proved, and was rolled back",
                hint="a trigger may redirect it; this is a reason to look closely",
            )
        self.commit(session, row, batch.number, ordinals, manifest.export.identity.mode)
        return len(gone)

    def _still_there(self, at: Locator, gone: Sequence[bytes]) -> bool:
        """Whether a row that was deleted is there again: an acknowledged trigger may do something else."""
        if not self.ctx.table.spec.cleanup.acknowledge:
            return False
        return not set(gone).isdisjoint(at.read(gone, lock=True, matching=False).matched)

    def _refuse_unprovable(self, manifest: ArtifactManifest) -> None:
        identity = manifest.export.identity
        if identity.mode not in ("record", "key") or manifest.identity_file is None:
            reason = identity.reason or "it was exported from another kind of database"
            raise Unprovable(
                f"rows of {self.ctx.table.id!r} partition {manifest.export.partition} cannot be proved: {reason}",
                hint="let select.sql read the table as one of its FROM clause, or declare `key` columns of the file",
            )
        if not identity.key and self._repeats(manifest):
            raise Unprovable(f"the table of {self.ctx.table.id!r} {EQUAL_ROWS}", hint="give the table a primary key")

    def _repeats(self, manifest: ArtifactManifest) -> bool:
        """Whether a row of the source may stand behind several records of the file."""
        if manifest.export.identity.mode != "record":
            return False
        return parse_select(manifest.export.select_sql, self.ctx.table.folder / "select.sql").repeats


def _dropped(manifest: ArtifactManifest) -> int:
    """In mode `key` a line ends with the digest of the key."""
    return int(manifest.export.identity.mode == "key")


def _row_size(session: MysqlSession, table: BaseTable) -> int:
    query = (
        "SELECT COALESCE(avg_row_length, 0) FROM information_schema.tables WHERE table_schema = %s AND table_name = %s"
    )
    return int(session.one(query, (table.schema, table.name))[0])
