"""The queue: which request comes next, and whether it is begun at once or waits in Dagster's run queue.

There is one order, by turn and number, over the requests that have no run yet and those whose runs are queued. While
there is room, the first is begun at once in a child of the warm process. The next ones get runs too, which wait in
Dagster's queue, where people see them; the rest waits in the catalog. Dagster's daemon sees the same order (the tag
`dagster/priority`) and the same limits (dagster.yaml), so that it may take from the queue as well: it does when this
worker is late or gone. Neither begins a run twice, see `launch`.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dagster import DagsterRun, DagsterRunStatus

from export_pipelines.catalog.requests import RequestRow
from export_pipelines.components.request_job import REQUEST_TAG, USER_TAG
from export_pipelines.components.warm_launcher import WORKER_TAG
from export_pipelines.worker.context import AT_WORK, LOST_SECONDS, Context, age, worker_of
from export_pipelines.worker.processes import Child, WarmProcesses

_MAKING_SECONDS = 3.0

SHOWN = 20
"""Runs that wait in Dagster's queue at most: its daemon reads all of them each second."""


@dataclass
class _Room:
    """What may still be begun."""

    limit: int
    per_user: int | None
    busy: int = 0
    users: Counter[str] = field(default_factory=Counter)
    full_users: set[str] = field(default_factory=set)

    def take(self, user: str) -> None:
        self.busy += 1
        self.users[user] += 1

    @property
    def free(self) -> bool:
        return self.busy < self.limit

    def has_for(self, user: str) -> bool:
        """Whether one of this user's may begin."""
        if self.per_user is not None and self.users[user] >= self.per_user:
            self.full_users.add(user)
            return False
        return self.free


class Feeder:
    """Begins and queues what waits."""

    def __init__(self, context: Context, warm: WarmProcesses) -> None:
        self._context = context
        self._warm = warm

    def feed(self) -> bool:
        """Begin what there is room for, and queue what comes next; whether another look is worth while at once.

        Crash at any place: a request that has got a run which was never made is put back by the sweeper.
        """
        if not self._warm.ready:
            return False
        with self._alone() as alone:
            # Another machine's worker is at it: it leaves what it has no room for.
            return self._feed() if alone else True

    def _feed(self) -> bool:
        requests = self._context.requests
        given = [row for row in requests.unfinished() if row.run_id]
        fresh = requests.unsubmitted(SHOWN + self._context.service.concurrency)
        if not given and not fresh:
            return False
        self._warm.refresh(now=True)
        if not self._warm.ready:
            # Definitions have changed a moment ago: what is begun now is begun by the new ones.
            return False
        runs = self._context.runs_of(given)
        room, queued = self._room(given, runs)
        begun = self._begin(sorted([*queued, *fresh], key=_order), runs, room, len(queued))
        full = bool(room.full_users)
        if full and room.free:
            # Others may come behind those of users who have all that they may have.
            others = requests.unsubmitted(SHOWN, without=sorted(room.full_users))
            begun += self._begin(others, runs, room, SHOWN)
        return False

    def _room(self, given: list[RequestRow], runs: dict[str, DagsterRun]) -> tuple[_Room, list[RequestRow]]:
        """What is left of the limits, and the requests whose runs wait in Dagster's queue."""
        service = self._context.service
        room, queued = _Room(service.concurrency, service.per_user), []
        for row in given:
            run = runs.get(row.run_id or "")
            child = self._warm.child(row.run_id or "")
            if (child is not None and child.queues) or (
                child is None and run is not None and run.status is DagsterRunStatus.QUEUED
            ):
                queued.append(row)
            elif (child is not None and not child.queues) or (run is not None and run.status in AT_WORK):
                room.take(row.created_by)
            elif child is None and (run is None or not run.is_finished) and age(row.submitted_at) < _MAKING_SECONDS:
                # Another machine is making it. What is older is lost, and the sweeper's.
                room.take(row.created_by)
        return room, queued

    def _begin(self, rows: list[RequestRow], runs: dict[str, DagsterRun], room: _Room, queued: int) -> int:
        begun = 0
        for row in rows:
            if row.run_id is not None and self._warm.child(row.run_id) is not None:
                # It is being put into the queue, which is told in a moment: nobody overtakes it.
                room.limit = room.busy
            elif room.has_for(row.created_by):
                if self._start(row, runs):
                    room.take(row.created_by)
                    begun += 1
            elif row.run_id is None and self._warm.queues and queued < SHOWN and row.created_by not in room.full_users:
                queued += self._queue(row)
        return begun

    def _start(self, row: RequestRow, runs: dict[str, DagsterRun]) -> bool:
        """Execute a request at once, with the run that it has or with a new one."""
        if row.run_id is None:
            run_id = str(uuid.uuid4())
            if self._context.requests.submitted(row.id, run_id) is None:
                return False
            self._hand_over(Child(run_id, row.id, row.created_by, queues=False), make=True)
            return True
        return self.launch(runs[row.run_id])

    def _queue(self, row: RequestRow) -> int:
        run_id = str(uuid.uuid4())
        if self._context.requests.submitted(row.id, run_id) is None:
            return 0
        self._hand_over(Child(run_id, row.id, row.created_by, queues=True), make=True)
        return 1

    def launch(self, run: DagsterRun) -> bool:
        """Execute a run that exists, unless it is executed already: by a child of ours, or by another machine's worker.

        Asked for by the queue here, and by Dagster's daemon through its launcher, perhaps both at once.
        """
        child = self._warm.child(run.run_id)
        if child is not None:
            return not child.queues
        if run.is_finished or self._elsewhere(run):
            return True
        if not self._warm.ready:
            return False
        self._context.instance.add_run_tags(run.run_id, {WORKER_TAG: self._context.tag})
        child = Child(run.run_id, run.tags.get(REQUEST_TAG, ""), run.tags.get(USER_TAG, ""), queues=False)
        self._hand_over(child, make=False)
        return True

    def _elsewhere(self, run: DagsterRun) -> bool:
        """Whether another machine's worker has the run. A worker of this machine that had it is gone, since there is
        one only; one of another machine may have ended before the run was begun."""
        host = worker_of(run).get("host")
        if host in (None, self._context.host):
            return False
        record = self._context.instance.get_run_record_by_id(run.run_id)
        silent = time.time() - record.update_timestamp.timestamp() if record else 0.0
        return run.status in AT_WORK or silent < LOST_SECONDS

    def _hand_over(self, child: Child, *, make: bool) -> None:
        self._warm.run(child, make=make, host=self._context.tag)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other machine's worker feeds at the same time."""
        with self._context.pool.transaction() as cursor:
            cursor.execute(
                "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 2)) AS got", (self._context.pool.schema,)
            )
            yield bool(cursor.fetchone()["got"])


def _order(row: RequestRow) -> tuple[int, int]:
    return row.turn, row.number
