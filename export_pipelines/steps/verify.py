"""Verify: read archives again against their manifests, with no database at hand; all of it, or as much as a budget
allows, what was verified longest ago first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import unquote

from pydantic import ValidationError

from export_pipelines.catalog import VerificationRow
from export_pipelines.errors import ObjectMissing, RequestError
from export_pipelines.formats.encryption import NO_KEYS, Keyring
from export_pipelines.manifest import from_bytes
from export_pipelines.naming import table_folder
from export_pipelines.signing import PublicKey
from export_pipelines.steps.chain_check import ArtifactEntry, ChainCheck, Expected, check_chain, unaccounted
from export_pipelines.steps.chain_keys import MANIFEST, SIGNATURE
from export_pipelines.steps.context import Progress, silent
from export_pipelines.steps.file_check import FileCheck
from export_pipelines.steps.verification import Forgetful, VerificationState
from export_pipelines.steps.verify_workers import Task, Told, check_all
from export_pipelines.stores.base import Store

_NOTE_SECONDS = 5.0


@dataclass(frozen=True)
class VerifyReport:
    """What was read, and what is wrong with it. Rows are those of the files, bytes the stored ones without sidecars.

    A file that two manifests name for one export, as a crashed archiver leaves behind, counts once. `unaccounted` are
    objects in the table's folder that no manifest names: leftovers of a crash (`sweep` removes those), not damage.
    """

    table: str
    artifacts: int
    receipts: int
    rows: int
    bytes: int
    seconds: float
    problems: tuple[str, ...]
    unaccounted: tuple[str, ...] = ()
    sealed: int = 0
    """Encrypted files, sidecars included, that no identity here opens."""
    total: int = 0
    """Artifacts in the archive, of this partition if one was asked for; those that were given up not counted."""
    expired: int = 0
    """Artifacts that were given up by retention."""
    left_out: int = 0
    """Artifacts that the budget left no room for."""
    too_large: tuple[str, ...] = ()
    """Files that are larger than the whole budget, so that it never has room for them."""
    never: int = 0
    """Artifacts that were never verified as far as is known, this time included."""
    oldest: datetime | None = None
    """When that artifact was verified whose verification is the oldest; of all, this time included."""
    head: tuple[int, str] = (0, "")
    """Number and SHA-256 of the last entry of the chain."""
    signed: int | None = None
    """Entries whose signature was checked and is good; None if no key was given."""

    @property
    def limits(self) -> str:
        """What could not be proved, and what was proved instead; empty if nothing was left out."""
        if not self.sealed:
            return ""
        return (
            f"encrypted files not opened, for lack of an identity: {self.sealed}. Their rows were not "
            "counted and their digests not computed; size and SHA-256 of the stored bytes, the shape of the age "
            "format and the chain were checked"
        )

    @property
    def intact(self) -> bool:
        """Whether everything is as the manifests say."""
        return not self.problems


@dataclass(frozen=True)
class Target:
    """A table in an archive, and what its chain must contain: the end that a catalog knows, or an auditor."""

    archive: Store
    table_id: str
    expected: tuple[Expected, ...] = ()
    may_be_empty: bool = False
    """Whether it is no error that nothing was ever archived."""


@dataclass(frozen=True)
class Budget:
    """How much may be read at most, in stored bytes of files, and for how long. Chains are always read whole."""

    bytes: int | None = None
    seconds: float | None = None


@dataclass
class _Table:
    """A target while it is worked on."""

    target: Target
    chain: ChainCheck
    artifacts: list[ArtifactEntry]
    known: dict[int, VerificationRow]
    begun: float
    files: list[FileCheck] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    too_large: list[str] = field(default_factory=list)
    unnoted: list[VerificationRow] = field(default_factory=list)


def verify_table(
    archive: Store,
    table_id: str,
    *,
    partition: str | None = None,
    head: tuple[int, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    keyring: Keyring = NO_KEYS,
    keys: Sequence[PublicKey] = (),
) -> VerifyReport:
    """Verify one table, or one partition of it, whole and in this process. `head` is the last entry that the catalog
    knows. See `verify_tables`."""
    expected = (Expected(*head, "the catalog"),) if head else ()
    (report,) = verify_tables(
        [Target(archive, table_id, expected)], partition=partition, progress=progress, keyring=keyring, keys=keys
    )
    return report


def verify_tables(
    targets: Iterable[Target],
    *,
    partition: str | None = None,
    jobs: int = 1,
    budget: Budget = Budget(),
    state: VerificationState | None = None,
    progress: Callable[[Progress], None] | None = None,
    keyring: Keyring = NO_KEYS,
    keys: Sequence[PublicKey] = (),
) -> list[VerifyReport]:
    """Check the chains of tables and the files of all their partitions, or of one; report every problem found.

    Of each file: size, SHA-256 of the stored and of the raw bytes, its rows counted and their digest computed again,
    and the same of its sidecar. With `keys`, the signature of each entry and of the head. What a tombstone gave up may
    be gone. An entry that a target expects shows a tail that was cut off, which a chain without a signed head cannot.

    With a budget, files are taken by when `state` says that they were verified: never, then longest ago. What of a
    problem was seen before, and is not looked at this time, is told again. Nothing in the archive is changed. Memory:
    about a kilobyte an entry, and that of one check a process.

    Crash: what was found in the last seconds is not in `state`.

    Raises:
        RequestError: there is nothing of a table, or of this partition, in the archive.
        StoreError: an archive cannot be listed. A single file that cannot be read is a problem of that file.
    """
    state = state or Forgetful()
    deadline = None if budget.seconds is None else time.monotonic() + budget.seconds
    tables = [_read(target, partition, keys, state) for target in targets]
    archives = list({id(table.target.archive): table.target.archive for table in tables}.values())
    chosen = _choose(tables, archives, budget.bytes)
    table_of = {(task.archive, task.table_id): table for task, table in chosen}
    noted = time.monotonic()
    for task, result in check_all(
        [task for task, _ in chosen],
        archives,
        jobs=jobs,
        deadline=deadline,
        keyring=keyring,
        tell=_teller(progress or silent),
    ):
        _take(table_of[task.archive, task.table_id], task, result, broke_off_first=task == chosen[0][0])
        if time.monotonic() - noted > _NOTE_SECONDS:
            _note(tables, state)
            noted = time.monotonic()
    _note(tables, state)
    return [_report(table, partition, keys) for table in tables]


def _read(target: Target, partition: str | None, keys: Sequence[PublicKey], state: VerificationState) -> _Table:
    """Check the chain of a target. Raises RequestError: there is nothing to verify."""
    begun = time.monotonic()
    chain = check_chain(target.archive, target.table_id, expected=target.expected, keys=keys)
    if not target.may_be_empty:
        _refuse_nothing(chain, partition)
    artifacts = [each for each in chain.living if partition in (None, each.partition)]
    known = dict(state.last(target.table_id, target.archive.url))
    return _Table(target, chain, artifacts, known, begun)


def _refuse_nothing(chain: ChainCheck, partition: str | None) -> None:
    if not chain.last[0] and not chain.problems:
        raise RequestError(
            f"nothing of {chain.table_id!r} is archived in {chain.archive.url}",
            hint="check the table's name (`export-pipelines list`), or run its archive first",
        )
    known = sorted({each.partition for each in chain.artifacts.values()})
    if partition is not None and partition not in known and not chain.problems:
        raise RequestError(
            f"partition {partition!r} of {chain.table_id!r} is not archived in {chain.archive.url}",
            hint=f"there are {len(known)} partitions, {known[0]} to {known[-1]}" if known else "",
        )


def _choose(tables: Sequence[_Table], archives: Sequence[Store], limit: int | None) -> list[tuple[Task, _Table]]:
    """The artifacts to read, in the order in which they are due, as far as the budget goes.

    One that does not fit is passed over for smaller ones. Being the oldest, it is the first next time.
    """
    due = [(table, each) for table in tables for each in table.artifacts]
    if limit is not None:
        due.sort(key=lambda item: _verified_at(item[0], item[1]))
    chosen, left = [], limit
    for table, each in due:
        if left is not None:
            if each.total > (limit or 0):
                table.too_large.append(f"{each.keys[0]}: {each.total} bytes")
            if each.total > left:
                continue
            left -= each.total
        number = next(n for n, archive in enumerate(archives) if archive is table.target.archive)
        task = Task(number, table.target.table_id, each.partition, each.sequence, each.sha256, each.total)
        chosen.append((task, table))
    return chosen


def _verified_at(table: _Table, artifact: ArtifactEntry) -> float:
    row = table.known.get(artifact.sequence)
    return row.verified_at.timestamp() if row else float("-inf")


def _teller(progress: Callable[[Progress], None]) -> Callable[[Told], None]:
    return lambda at: progress(Progress("verify", at.task.table_id, at.task.partition, at.rows, at.bytes))


def _take(table: _Table, task: Task, result: FileCheck | None, *, broke_off_first: bool) -> None:
    """Note the result of a task. What was not read to its end stays what it was, and is due again."""
    if result is None:
        if broke_off_first:
            table.too_large.append(f"manifest {task.sequence}: {task.size} bytes were not read in time")
        return
    table.files.append(result)
    table.done.add(task.sequence)
    if not result.unread:
        problem = "; ".join(result.problems)
        row = VerificationRow(task.sequence, datetime.now(UTC), not problem, problem)
        table.known[task.sequence] = row
        table.unnoted.append(row)


def _note(tables: Sequence[_Table], state: VerificationState) -> None:
    for table in tables:
        if table.unnoted:
            state.note(table.target.table_id, table.target.archive.url, table.unnoted)
            table.unnoted = []


def _report(table: _Table, partition: str | None, keys: Sequence[PublicKey]) -> VerifyReport:
    chain, artifacts = table.chain, table.artifacts
    by_number = {each.sequence: each for each in artifacts}
    files = sorted(table.files, key=lambda file: file.sequence)
    # Of two manifests of one export, the first is counted.
    first: dict[str, FileCheck] = {}
    for file in files:
        first.setdefault(by_number[file.sequence].attempt, file)
    seen = [row for number in by_number if (row := table.known.get(number))]
    before = [
        f"{row.problem} (seen on {row.verified_at:%Y-%m-%d}, not read again this time)"
        for row in seen
        if not row.intact and row.sequence not in table.done
    ]
    return VerifyReport(
        table=chain.table_id,
        artifacts=len(first),
        receipts=sum(partition in (None, each) for each in chain.receipts),
        rows=sum(file.rows for file in first.values()),
        bytes=sum(by_number[file.sequence].size for file in first.values()),
        seconds=time.monotonic() - table.begun,
        problems=(*chain.problems, *(problem for file in files for problem in file.problems), *before),
        unaccounted=tuple(unaccounted(chain.archive, chain.table_id, chain)) if partition is None else (),
        sealed=sum(file.sealed for file in files),
        total=len(artifacts),
        expired=sum(partition in (None, chain.artifacts[number].partition) for number in chain.expired),
        left_out=len(artifacts) - len(table.done),
        too_large=tuple(table.too_large),
        never=len(artifacts) - len(seen),
        oldest=min((row.verified_at for row in seen), default=None),
        head=chain.last,
        signed=chain.signed if keys else None,
    )


def tables_in(archive: Store) -> list[str]:
    """Ids of the tables that have manifests in an archive, or signatures of such, sorted. Lists every object once."""
    folders: dict[str, str] = {}
    for info in archive.list():
        match = MANIFEST.fullmatch(info.key) or SIGNATURE.fullmatch(info.key)
        if match and match["folder"] not in folders:
            folders[match["folder"]] = _table_id(archive, match["folder"], info.key)
    return sorted(folders.values())


def strays(archive: Store, tables: Iterable[str]) -> list[str]:
    """Keys of an archive that are in the folder of no table."""
    folders = tuple(table_folder(table) + "/" for table in tables)
    return [info.key for info in archive.list() if not info.key.startswith(folders)]


def _table_id(archive: Store, folder: str, key: str) -> str:
    """The id that a manifest gives; if it cannot be read, the folder's name decoded, so that verify looks there."""
    try:
        entry = from_bytes(archive.get(key))
    except (ValidationError, ObjectMissing):
        return unquote(folder)
    return entry.table if table_folder(entry.table) == folder else unquote(folder)
