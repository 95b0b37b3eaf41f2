"""The worker's side of the warm processes: the one that is used, and older ones whose last children are at work."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from export_pipelines.components.stamp import Stamp, stamp_of
from export_pipelines.settings import Settings
from export_pipelines.worker.lines import Lines

_AGAIN_SECONDS = (0.0, 1.0, 5.0, 15.0)
"""Waits before a warm process that ended by itself is started anew, by how often in a row."""
_CHECK_SECONDS = 1.0
_NO_ORIGIN = (
    "warning: workspace.yaml does not name this project (module export_pipelines.definitions): requests are answered, "
    "but none waits in Dagster's queue, and its UI does not know where their runs come from"
)


@dataclass
class Child:
    """A child that executes a run, as far as we know of it."""

    run_id: str
    request: str
    user: str
    queues: bool
    """It only puts the run into Dagster's queue."""
    asked_at: float = field(default_factory=time.monotonic)
    pid: int = 0
    """0 until the warm process has said it."""
    interrupted_at: float | None = None


@dataclass
class _Process:
    popen: subprocess.Popen[bytes]
    control: Lines
    stamp: Stamp
    ready: bool = False
    queues: bool = True
    children: dict[str, Child] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """A child that has ended."""

    child: Child
    code: int
    """Exit code, or minus the signal that killed it."""


class WarmProcesses:
    """Starts warm processes, hands them their tasks, and knows their children. For one thread, but for `has`."""

    def __init__(self, settings: Settings, say: Callable[[str], object]) -> None:
        self._settings = settings
        self._say = say
        self.changed = False
        """Whether definitions have changed since somebody set it back."""
        self._current: _Process | None = None
        self._old: list[_Process] = []
        self._failures = 0
        self._not_before = 0.0
        self._checked_at = 0.0

    @property
    def ready(self) -> bool:
        """Whether a run can be begun at once. Not while definitions that have changed are being read."""
        return self._current is not None and self._current.ready

    @property
    def queues(self) -> bool:
        """Whether runs can wait in Dagster's queue: they need a code location to come from."""
        return self._current is not None and self._current.queues

    @property
    def controls(self) -> list[Lines]:
        """To be watched; `read` one that has something."""
        return [each.control for each in self._all()]

    def child(self, run_id: str) -> Child | None:
        """The child that is at work on a run."""
        return next((p.children[run_id] for p in self._all() if run_id in p.children), None)

    def has(self, run_id: str) -> bool:
        """Whether there is a child for a run: from the moment at which it is handed over. For any thread."""
        return any(run_id in each.children for each in self._all())

    @property
    def children(self) -> list[Child]:
        """All."""
        return [child for process in self._all() for child in process.children.values()]

    def refresh(self, *, now: bool = False) -> None:
        """See whether files have changed and whether the process is there, at most once a second unless `now`. What has
        changed is in `changed` until it is taken."""
        moment = time.monotonic()
        if not now and moment - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = moment
        if self._current is None:
            if moment >= self._not_before:
                self._start()
            return
        if stamp_of(self._settings) == self._current.stamp:
            return
        self._say("the definitions have changed: reading them anew")
        self._retire()
        self._start()
        self.changed = True

    def run(self, child: Child, **task: Any) -> None:
        """Hand over a run. What becomes of it, `read` tells."""
        process = self._current
        assert process is not None and process.ready
        process.children[child.run_id] = child
        message = {"do": "run", "key": child.run_id, "run": child.run_id, "request": child.request, **task}
        message["queue"] = child.queues
        process.control.send(message)

    def signal(self, child: Child, number: int) -> None:
        """Send a signal to a child; nothing happens if it has ended."""
        for process in self._all():
            if process.children.get(child.run_id) is child and child.pid:
                process.control.send({"do": "signal", "key": child.run_id, "pid": child.pid, "signal": number})

    def read(self, control: Lines) -> Iterator[Ended]:
        """Take in what a process says; the children that have ended."""
        process = next((each for each in self._all() if each.control is control), None)
        if process is None:
            return
        messages = control.receive()
        for message in messages or ():
            yield from self._heard(process, message)
        if messages is None:
            yield from self._gone(process)

    def close(self) -> None:
        """End all processes: what they are at work on goes back into the queue."""
        for process in self._all():
            process.control.close()
        for process in self._all():
            try:
                process.popen.wait(7)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        self._current, self._old = None, []

    def _all(self) -> list[_Process]:
        current = self._current
        return [*([current] if current else []), *self._old]

    def _heard(self, process: _Process, message: dict[str, Any]) -> Iterator[Ended]:
        if message.get("ready"):
            process.ready, process.queues, self._failures = True, message["queues"], 0
            if not process.queues:
                self._say(_NO_ORIGIN)
            for error in message["errors"]:
                self._say(f"warning: {error}")
        elif "began" in message:
            if child := process.children.get(message["began"]):
                child.pid = message["pid"]
        elif "ended" in message and (ended := process.children.pop(message["ended"], None)):
            yield Ended(ended, message["code"])

    def _gone(self, process: _Process) -> Iterator[Ended]:
        """A warm process has ended, and its children with it."""
        process.control.close()
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(1)
        if process is self._current:
            self._current = None
            wait = _AGAIN_SECONDS[min(self._failures, len(_AGAIN_SECONDS) - 1)]
            self._failures += 1
            self._not_before = time.monotonic() + wait
            self._say(f"the warm process has ended by itself (code {process.popen.poll()}); another one is started")
        else:
            self._old.remove(process)
        for child in list(process.children.values()):
            yield Ended(child, -9)

    def _start(self) -> None:
        # Of before it reads anything: a change while it reads is seen.
        stamp = stamp_of(self._settings)
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-W", "ignore", "-m", "export_pipelines.worker.warm", str(theirs.fileno())]
            popen = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=self._settings.root,
                env={**os.environ, "EXPORT_PIPELINES_PROJECT": str(self._settings.root)},
            )
        self._current = _Process(popen, Lines(ours), stamp)

    def _retire(self) -> None:
        process = self._current
        if process is not None:
            # Never in neither place: another thread may look for its children.
            self._old.append(process)
            process.control.send({"do": "retire"})
        self._current = None
