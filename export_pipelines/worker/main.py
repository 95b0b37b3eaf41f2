"""The worker: the process that takes requests from the queue, sees them through, and tidies up after them.

One a project and machine. Its main thread listens, feeds, cancels and answers Dagster's launcher; what may take long
(sweeping, expiry, notices) is done in a second one, so that a request never waits for it.
"""

from __future__ import annotations

import fcntl
import os
import queue
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import dagster as dg

from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.components.opening import initialized
from export_pipelines.components.project import load_project
from export_pipelines.errors import ExportPipelinesError, RequestError, SpecErrors
from export_pipelines.local.project import worker_socket
from export_pipelines.settings import Settings
from export_pipelines.worker.child import Outcome
from export_pipelines.worker.chores import Chores
from export_pipelines.worker.context import SILENT_SECONDS, Context, keep_connected
from export_pipelines.worker.door import Door
from export_pipelines.worker.feeder import Feeder
from export_pipelines.worker.listener import Listener
from export_pipelines.worker.processes import Child, Ended, WarmProcesses

_TICK_SECONDS = 1.0
_AGAIN_SECONDS = 0.05
"""When another machine's worker is at the queue at this moment."""
_KILL_AFTER_SECONDS = 5.0
"""An interrupted child that is still there is killed: it may be stuck."""
_STOP_SECONDS = 6.0
_AWAY_SECONDS = 1.0


class Worker:
    """Everything of the process, from its start to its end."""

    def __init__(self, context: Context, url: str) -> None:
        self._context = context
        self._warm = WarmProcesses(context.settings, context.say)
        self._feeder = Feeder(context, self._warm)
        self._listener = Listener(url, context.pool)
        self._orders: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._wake, self._wakened = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._wakened, False)
        self._stopping = False
        self._reload = False
        self._away = False
        self.chores = Chores(context, self._kill, self._warm.has)

    def run(self) -> None:
        """Until `stop`. What is at work then goes back into the queue."""
        with ExitStack() as stack:
            door = Door(worker_socket(self._context.settings), self._answer)
            stack.callback(door.close)
            stack.callback(self._listener.close)
            # The warm process is started first: it may come from a process with threads, but not the other way round.
            self._warm.refresh(now=True)
            stack.callback(self._warm.close)
            self.chores.start()
            stack.callback(self.chores.close)
            self._loop(door)
            self._put_back()

    def stop(self) -> None:
        """Begin to end. For signal handlers."""
        self._stopping = True
        self._ring()

    def _loop(self, door: Door) -> None:
        again, ticked = False, 0.0
        while not self._stopping:
            heard, ended = self._wait(door, _AGAIN_SECONDS if again else _TICK_SECONDS)
            tick = time.monotonic() - ticked >= _TICK_SECONDS
            try:
                if tick:
                    ticked = time.monotonic()
                    self._tick()
                self._settle(ended)
                self._cancel(heard, tick)
                # What runs tells its progress on the same channel, which is no reason to look at the queue.
                mine = {child.request for child in self._warm.children}
                look = bool(heard - mine) or bool(ended) or tick or again
                again = look and self._feeder.feed()
                if self._away:
                    self._context.say("the catalog answers again")
                    self._away = False
            except ExportPipelinesError as error:
                self._wait_for_catalog(error)
            except Exception as error:
                # Dagster's storage speaks SQLAlchemy. It is the same database, as a rule.
                self._wait_for_catalog(error)

    def _wait(self, door: Door, seconds: float) -> tuple[set[str], list[Ended]]:
        """Wait for something to happen; changed requests and ended children."""
        fresh = self._listener.connect()
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            selector.register(door, selectors.EVENT_READ)
            if self._listener.connected:
                selector.register(self._listener, selectors.EVENT_READ)
            for control in self._warm.controls:
                selector.register(control, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(0 if fresh else seconds)]
        heard = self._listener.heard() if self._listener in ready else set()
        was_ready = self._warm.ready
        ended = [each for control in self._warm.controls if control in ready for each in self._warm.read(control)]
        if self._warm.ready and not was_ready:
            self._context.say("ready: requests are taken")
            heard.add("")
        if self._wake in ready:
            with suppress(BlockingIOError):
                os.read(self._wake, 4096)
        with suppress(queue.Empty):
            while True:
                self._orders.get_nowait()()
        if door in ready:
            door.open()
        return heard | ({""} if fresh else set()), ended

    def _tick(self) -> None:
        self._warm.refresh()
        if self._warm.changed:
            self._warm.changed = False
            self.chores.reload()
        now = time.monotonic()
        for child in self._warm.children:
            if child.interrupted_at is not None and now - child.interrupted_at > _KILL_AFTER_SECONDS:
                self._warm.signal(child, signal.SIGKILL)

    def _settle(self, ended: list[Ended]) -> None:
        for each in ended:
            # Those that put runs into the queue, and those that did as they should, leave nothing to do.
            if each.code not in (Outcome.DONE, Outcome.INTERRUPTED):
                how = f"signal {-each.code}" if each.code < 0 else f"exit code {each.code}"
                self.chores.child_broke_off(each.child.run_id, each.child.request, how)
            elif not each.child.queues:
                self.chores.child_ended(each.child.run_id, each.child.request)

    def _cancel(self, heard: set[str], tick: bool) -> None:
        """Interrupt the children whose requests are not wanted any more, or whose runs somebody terminated."""
        working = {child.request: child for child in self._warm.children if not child.queues and child.pid}
        if not working or not (tick or heard & working.keys()):
            return
        unwanted = {row.id for row in self._context.requests.cancelling()}
        for request, child in working.items():
            if request in unwanted and child.interrupted_at is None:
                self._interrupt(child)
        if tick:
            terminated = self._context.runs(dg.DagsterRunStatus.CANCELING)
            for child in working.values():
                if child.run_id in terminated and child.interrupted_at is None:
                    self._interrupt(child)

    def _interrupt(self, child: Child) -> None:
        child.interrupted_at = time.monotonic()
        # First of all: what follows takes its time, and the child looks for itself why it was interrupted.
        self._warm.signal(child, signal.SIGINT)
        run = self._context.instance.get_run_by_id(child.run_id)
        if run is not None and run.status in (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED):
            self._context.instance.report_run_canceling(run)

    def _kill(self, run_id: str, at_once: bool) -> bool:
        """Asked for by the other thread."""
        if not self._warm.has(run_id):
            return False

        def order() -> None:
            child = self._warm.child(run_id)
            if child is not None:
                child.interrupted_at = child.interrupted_at or time.monotonic()
                self._warm.signal(child, signal.SIGKILL if at_once else signal.SIGINT)

        self._orders.put(order)
        self._ring()
        return True

    def _ring(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._wakened, b"!")

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """What Dagster's launcher asks."""
        run_id = str(question.get("run", ""))
        match question.get("do"):
            case "launch":
                run = self._context.instance.get_run_by_id(run_id)
                return {"ok": run is not None and self._feeder.launch(run)}
            case "interrupt":
                child = self._warm.child(run_id)
                if child is not None:
                    child.interrupted_at = child.interrupted_at or time.monotonic()
                    self._warm.signal(child, signal.SIGINT)
                return {"ok": child is not None}
            case "health":
                return {"alive": self._warm.child(run_id) is not None}
        return {"ok": True, "ready": self._warm.ready, "children": len(self._warm.children)}

    def _wait_for_catalog(self, error: Exception) -> None:
        if not self._away:
            first = getattr(error, "message", "") or (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._context.say(f"warning: {first}; trying again")
        self._away = True
        time.sleep(_AWAY_SECONDS)

    def _put_back(self) -> None:
        """Interrupt all children and wait until they have put their requests back."""
        for child in self._warm.children:
            self._warm.signal(child, signal.SIGTERM)
        if number := len(self._warm.children):
            self._context.say(f"stopping: {number} requests go back into the queue")
        deadline = time.monotonic() + _STOP_SECONDS
        while self._warm.children and time.monotonic() < deadline:
            for control in self._warm.controls:
                self._give_back([each.child for each in self._warm.read(control)])
            time.sleep(0.05)
        self._give_back(self._warm.children)

    def _give_back(self, children: list[Child]) -> None:
        """Put back what a child has not put back or ended itself: its run had not begun. Each knows whose run it is."""
        with suppress(ExportPipelinesError):
            for child in children:
                row = self._context.requests.get(child.request)
                if row is not None and row.state == "pending" and row.run_id == child.run_id and not child.queues:
                    self._context.requests.again(child.request, child.run_id)


def work(settings: Settings, *, say: Callable[[str], object], silent_seconds: float = SILENT_SECONDS) -> None:
    """Be the worker of a project on this machine until SIGINT, SIGTERM or SIGHUP. A request at work that says nothing
    for `silent_seconds`, and the longest wait between two attempts, is stuck.

    Raises:
        RequestError: there is one already, or resources/ lacks the catalog.
        SpecErrors: the service's settings are broken.
    """
    with ExitStack() as stack:
        stack.enter_context(only_one(settings.state))
        project = load_project(settings.root, settings.dsl_path, automations=False)
        if project.service_errors:
            raise SpecErrors(project.service_errors)
        catalog = initialized("catalog", project.resources.get("catalog"))
        pool = CatalogPool(catalog.url, catalog.schema_name)
        stack.callback(pool.close)
        instance = stack.enter_context(dg.DagsterInstance.get())
        keep_connected(instance)
        worker = Worker(Context(settings, project, pool, instance, say, silent_seconds), catalog.url)
        stack.enter_context(_stopped_by_signals(worker))
        worker.run()


@contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Hold the project on this machine.

    Raises:
        RequestError: another worker does.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / "worker.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise RequestError(
                f"this project has a worker on this machine already (process {holder})",
                hint="`up` starts one; for more requests at a time raise `concurrency` in resources/service/defs.yaml",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _stopped_by_signals(worker: Worker) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        worker.stop()

    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {kind: signal.signal(kind, stop) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
