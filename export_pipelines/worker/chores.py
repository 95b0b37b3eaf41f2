"""What the worker does besides, in a thread of its own: sweeping, notices, expiry, forgetting."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from export_pipelines.catalog.audit import AuditLog
from export_pipelines.components.opening import open_resource
from export_pipelines.errors import ExportPipelinesError
from export_pipelines.service_keys import load_service_keys
from export_pipelines.steps.request_files import expire_requests, sweep_requests
from export_pipelines.worker.context import Context
from export_pipelines.worker.notices import Notifier
from export_pipelines.worker.sweeper import Kill, Sweeper

_SWEEP_SECONDS = 2.0
_NOTICE_SECONDS = 1.0
_EXPIRY_SECONDS = 30.0
_FILES_SECONDS = 600.0
_FORGET_SECONDS = 3600.0
_AUDIT_SECONDS = 24 * 3600.0


@dataclass
class _Chore:
    """Something that is done again and again. What fails is told once, and tried again at its time."""

    name: str
    every: float
    do: Callable[[], object]
    next_at: float = 0.0
    failing: bool = False


class Chores:
    """The thread. It ends with the process."""

    def __init__(self, context: Context, kill: Kill, has_child: Callable[[str], bool]) -> None:
        self._context = context
        self._sweeper = Sweeper(context, kill, has_child)
        self._inbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._notifier: Notifier | None = None
        self._thread = threading.Thread(target=self._run, name="chores", daemon=True)
        self._chores = [
            _Chore("sweeping", _SWEEP_SECONDS, self._sweeper.sweep),
            _Chore("notices", _NOTICE_SECONDS, self._tell),
            _Chore("expiry", _EXPIRY_SECONDS, self._expire),
            _Chore("sweeping of files", _FILES_SECONDS, self._sweep_files),
            _Chore("forgetting", _FORGET_SECONDS, self._forget),
            _Chore("audit log", _AUDIT_SECONDS, self._keep_audit),
        ]

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def reload(self) -> None:
        """The project was read anew."""
        self._inbox.put(self._renew)

    def child_ended(self, run_id: str, request: str) -> None:
        """A child has ended as it should: its request has ended too, as a rule."""
        self._inbox.put(lambda: self._sweeper.settle(request, run_id))

    def child_broke_off(self, run_id: str, request: str, how: str) -> None:
        """A child was killed or has broken off: its run is ended, and its request put back."""

        def settle() -> None:
            self._sweeper.report_ended(run_id, request, f"The process that executed this run has ended by {how}.")
            self._sweeper.settle(request, run_id)

        self._inbox.put(settle)

    def close(self) -> None:
        """End, when what is being done has been."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(5)
        if self._notifier is not None:
            self._notifier.close()

    def _run(self) -> None:
        while True:
            wait = min(each.next_at for each in self._chores) - time.monotonic()
            try:
                job = self._inbox.get(timeout=max(wait, 0.01))
            except queue.Empty:
                self._due()
                continue
            if job is None:
                return
            self._do(_Chore("settling", 0, job))

    def _due(self) -> None:
        for each in self._chores:
            if each.next_at <= time.monotonic():
                self._do(each)
                each.next_at = time.monotonic() + each.every

    def _do(self, chore: _Chore) -> None:
        try:
            chore.do()
            chore.failing = False
        except Exception as error:
            # Whatever it is, the other chores go on, and this one is tried again.
            if not chore.failing:
                self._context.say(f"warning: {chore.name}: {_first_line(error)}; it is tried again")
            chore.failing = True

    def _tell(self) -> None:
        if self._notifier is None:
            keys = load_service_keys(self._context.settings.state)
            self._notifier = Notifier.of(
                self._context.pool, self._context.service, keys, self._context.project.datasets
            )
        self._notifier.tick()

    def _renew(self) -> None:
        self._context.reload()
        before, self._notifier = self._notifier, None
        if before is not None:
            before.close()

    def _expire(self) -> None:
        if gone := expire_requests(self._store(), self._context.requests):
            self._context.say(f"the files of {len(gone)} requests have expired")

    def _sweep_files(self) -> None:
        if swept := sweep_requests(self._store(), self._context.requests):
            self._context.say(f"{len(swept)} files of attempts that broke off are removed")

    def _store(self) -> Any:
        return open_resource(self._context.project.resources, self._context.service.store)

    def _forget(self) -> None:
        if number := self._context.requests.forget(self._context.service.history_keep_days):
            self._context.say(f"{number} requests of the past are forgotten")

    def _keep_audit(self) -> None:
        log = AuditLog(self._context.pool)
        try:
            log.keep(self._context.service.audit_keep_days)
        finally:
            if number := log.prune():
                self._context.say(f"{number} entries of the audit log were old enough to go")


def _first_line(error: Exception) -> str:
    if isinstance(error, ExportPipelinesError):
        return error.message
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
