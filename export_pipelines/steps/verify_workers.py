"""Artifacts checked one after the other, or by several processes at once.

Processes are spawned, not forked: a run has threads. Each works on one artifact at a time and so needs the memory that
one check needs, whatever their number. A process whose parent has died ends when its pipe does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from export_pipelines.errors import ExportPipelinesError, IntegrityError
from export_pipelines.formats.encryption import NO_KEYS, Keyring
from export_pipelines.manifest import ArtifactManifest, digest
from export_pipelines.steps.chain import read_entry
from export_pipelines.steps.file_check import FileCheck, check_artifact
from export_pipelines.stores.base import Store

BYTES_A_PROCESS = 32_000_000
"""Stored bytes for which another process is worth its start, which takes about half a second."""

_TELL_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """One artifact to check, by the number of its archive and the SHA-256 that its manifest was seen to have."""

    archive: int
    table_id: str
    partition: str
    sequence: int
    sha256: str
    size: int


@dataclass(frozen=True)
class Told:
    """How far a task is."""

    task: Task
    rows: int
    bytes: int


class _OutOfTime(Exception):
    """The deadline has passed."""


def default_jobs() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_all(
    tasks: Sequence[Task],
    archives: Sequence[Store],
    *,
    jobs: int,
    deadline: float | None,
    keyring: Keyring,
    tell: Callable[[Told], None],
) -> Iterator[tuple[Task, FileCheck | None]]:
    """Check tasks in their order, by at most `jobs` processes; give each with its result as it is done.

    None is the result of what was broken off at the `deadline` (of time.monotonic()); what had not begun is not given.
    If the caller stops, all processes are ended.
    """
    worth = 1 + sum(task.size for task in tasks) // BYTES_A_PROCESS
    jobs = min(jobs, len(tasks), worth)
    if jobs < 2 or multiprocessing.current_process().daemon:
        yield from _one_by_one(tasks, archives, deadline, keyring, tell)
    else:
        with _pool(jobs, archives, keyring) as workers:
            yield from _hand_out(deque(tasks), workers, deadline, tell)


def _one_by_one(
    tasks: Sequence[Task],
    archives: Sequence[Store],
    deadline: float | None,
    keyring: Keyring,
    tell: Callable[[Told], None],
) -> Iterator[tuple[Task, FileCheck | None]]:
    for task in tasks:
        if deadline is not None and time.monotonic() >= deadline:
            return
        yield task, _check(task, archives[task.archive], deadline, keyring, tell)


def _check(
    task: Task, archive: Store, deadline: float | None, keyring: Keyring, tell: Callable[[Told], None]
) -> FileCheck | None:
    """The result of one task; None if its time was over. Never raises an error of ours."""

    def progress(rows: int, size: int) -> None:
        if deadline is not None and time.monotonic() >= deadline:
            raise _OutOfTime
        tell(Told(task, rows, size))

    try:
        entry, data = read_entry(archive, task.table_id, task.sequence)
        if digest(data) != task.sha256 or not isinstance(entry, ArtifactManifest):
            raise IntegrityError(f"manifest {task.sequence} was changed while it was verified")
        return check_artifact(archive, entry, keyring=keyring, tell=progress)
    except _OutOfTime:
        return None
    except ExportPipelinesError as error:
        return FileCheck(task.sequence, problems=[error.message], unread=not isinstance(error, IntegrityError))


@dataclass
class _Pool:
    """The processes, and how another is started in place of one that died."""

    start: Callable[[], _Worker]
    workers: list[_Worker] = field(default_factory=list)


@dataclass(eq=False)
class _Worker:
    """A process, our end of its pipe, and what it is at."""

    process: BaseProcess
    pipe: Connection
    task: Task | None = None


@contextmanager
def _pool(jobs: int, archives: Sequence[Store], keyring: Keyring) -> Iterator[_Pool]:
    spawn = multiprocessing.get_context("spawn")

    def start() -> _Worker:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs, list(archives), keyring), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    pool = _Pool(start)
    try:
        pool.workers = [start() for _ in range(jobs)]
        yield pool
    finally:
        for worker in pool.workers:
            worker.pipe.close()
            worker.process.kill()
        for worker in pool.workers:
            worker.process.join()


def _hand_out(
    tasks: deque[Task], pool: _Pool, deadline: float | None, tell: Callable[[Told], None]
) -> Iterator[tuple[Task, FileCheck | None]]:
    while True:
        late = deadline is not None and time.monotonic() >= deadline
        for worker in pool.workers:
            if worker.task is None and tasks and not late:
                worker.task = tasks.popleft()
                with suppress(OSError):  # it has died: seen below
                    worker.pipe.send((worker.task, None if deadline is None else deadline - time.monotonic()))
        busy = [worker for worker in pool.workers if worker.task is not None]
        if not busy:
            return
        ready = wait([worker.pipe for worker in busy])
        for worker in busy:
            if worker.pipe in ready and (done := _received(pool, worker, tell)):
                yield done


def _received(pool: _Pool, worker: _Worker, tell: Callable[[Told], None]) -> tuple[Task, FileCheck | None] | None:
    """What a process has sent: a result, or after progress None."""
    task = worker.task
    assert task is not None
    try:
        message = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        problem = f"its check was ended from outside (exit code {worker.process.exitcode}); memory may have run out"
        pool.workers[pool.workers.index(worker)] = pool.start()
        return task, FileCheck(task.sequence, problems=[f"manifest {task.sequence}: {problem}"], unread=True)
    if isinstance(message, Told):
        tell(message)
        return None
    worker.task = None
    return task, message


def _serve(pipe: Connection, archives: list[Store], keyring: Keyring = NO_KEYS) -> None:
    """What a process does until its pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; who started us ends us
    told = 0.0

    def tell(at: Told) -> None:
        nonlocal told
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            pipe.send(at)

    with suppress(EOFError, OSError):
        while True:
            task, seconds = pipe.recv()
            deadline = None if seconds is None else time.monotonic() + seconds
            pipe.send(_check(task, archives[task.archive], deadline, keyring, tell))
