"""The warm process: it has everything imported and the project read, and forks a child for each run.

`python -m export_pipelines.worker.warm FD`, started by the worker. FD is a socket with a JSON object a line.

    worker → {"do": "run", "key": …, …}  a child takes it (child.py says what may stand in it)
             {"do": "signal", "key": …, "pid": …, "signal": …}
             {"do": "retire"}             end when the last child has ended
    warm   → {"ready": true, "errors": […], "queues": …}   whether runs can wait in Dagster's queue
             {"began": key, "pid": …}
             {"ended": key, "pid": …, "code": …}   code as of `waitpid`, negative for a signal

It has no threads, no connections and no open files of its own: a fork of it is clean. One child is always forked ahead,
connected and waiting, so that a run does not wait for a fork; under load a child does one run after the other. When the
worker is gone, so are the children and this process.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from export_pipelines.sources.postgres import redact
from export_pipelines.worker.child import Prepared, be_a_child, prepare
from export_pipelines.worker.lines import Lines

SPARE_SECONDS = 120.0
"""A spare child that nobody wanted for so long is replaced: its connections may have been cut."""
_IDLE_SECONDS = 0.2
_MOST_SPARES = 3
"""Children that have done something and may do more, at most."""


@dataclass
class _Child:
    pid: int
    control: Lines
    """Where it is told what to do, and says when it is done."""
    since: float
    """When it was forked, or has last done something."""
    key: str = ""
    """Of what it is doing."""
    gone: bool = False
    """Whether it was let go of."""


class Warm:
    """The process's state."""

    def __init__(self, control: Lines, prepared: Prepared) -> None:
        self._control = control
        self._prepared = prepared
        self._children: dict[int, _Child] = {}
        self._to_queue: deque[dict[str, Any]] = deque()
        """Runs to be put into Dagster's queue, by one child after the other: they are in no hurry."""
        self._queuer: _Child | None = None
        self._retired = False
        self._wake, self._wakened = os.pipe()
        for end in (self._wake, self._wakened):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wakened)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A Ctrl-C of the terminal reaches us as well: the worker says when to end.
            signal.signal(kind, signal.SIG_IGN)

    def serve(self) -> None:
        """Until the worker is gone, or we are retired and the last child has ended."""
        ready = {"ready": True, "errors": self._prepared.errors, "queues": self._prepared.origin is not None}
        self._control.send(ready)
        while not (self._retired and not self._busy()):
            watched: list[Any] = [
                self._control,
                self._wake,
                *(c.control for c in self._children.values() if not c.gone),
            ]
            ready_ones, _, _ = select.select(watched, [], [], _IDLE_SECONDS)
            if self._wake in ready_ones:
                with suppress(BlockingIOError):
                    os.read(self._wake, 4096)
            # First what they say, then that they have ended.
            for child in [c for c in self._children.values() if c.control in ready_ones]:
                self._listen(child)
            self._reap()
            if self._control in ready_ones:
                if not self._obey():
                    break
            elif not ready_ones:
                self._keep_spare()
        self._end_children()

    def _busy(self) -> bool:
        return bool(self._to_queue) or any(child.key for child in self._children.values())

    def _obey(self) -> bool:
        """What the worker says; False when it is gone."""
        messages = self._control.receive()
        for message in messages or ():
            match message["do"]:
                case "run" if message["queue"]:
                    self._to_queue.append(message)
                    self._queue_next()
                case "run":
                    self._give(message)
                case "signal":
                    # Only what has not been reaped: the number may be another process's by now.
                    child = self._children.get(message["pid"])
                    if child is not None and child.key == message["key"]:
                        os.kill(child.pid, message["signal"])
                case "retire":
                    self._retired = True
                    self._let_go_of_spares()
        return messages is not None

    def _give(self, message: dict[str, Any]) -> _Child:
        """Let a child do something: one that waits, or a new one."""
        child = next((each for each in self._children.values() if not each.key and not each.gone), None) or self._fork()
        child.key = message["key"]
        child.control.send(message)
        if not message["queue"]:
            self._control.send({"began": child.key, "pid": child.pid})
        return child

    def _queue_next(self) -> None:
        if self._to_queue and self._queuer is None:
            self._queuer = self._give(self._to_queue.popleft())

    def _listen(self, child: _Child) -> None:
        """A child says that it is done, or says nothing any more."""
        messages = child.control.receive()
        for message in messages or ():
            self._ended(child, message["done"], 0)
            child.key, child.since = "", time.monotonic()
            if self._retired or len(self._spares()) > _MOST_SPARES:
                self._let_go(child)
        if messages is None:
            self._let_go(child)

    def _ended(self, child: _Child, key: str, code: int) -> None:
        if key:
            self._control.send({"ended": key, "pid": child.pid, "code": code})
        if child is self._queuer:
            self._queuer = None
            self._queue_next()

    def _spares(self) -> list[_Child]:
        return [each for each in self._children.values() if not each.key and not each.gone]

    def _keep_spare(self) -> None:
        """While nothing else is to be done: let a child wait, not for too long and no more than one."""
        spares = self._spares()
        for each in spares:
            if time.monotonic() - each.since > SPARE_SECONDS or each is not spares[-1]:
                self._let_go(each)
        if not self._retired and not self._spares():
            self._fork()

    def _let_go_of_spares(self) -> None:
        for each in self._spares():
            self._let_go(each)

    def _let_go(self, child: _Child) -> None:
        """At the end of its socket it ends."""
        if not child.gone:
            child.gone = True
            child.control.close()

    def _fork(self) -> _Child:
        ours, theirs = socket.socketpair()
        parent, log = os.getpid(), os.dup(2)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                ours.close()
                self._control.close()
                for other in self._children.values():
                    other.control.close()
                os.close(self._wake)
                os.close(self._wakened)
                code = be_a_child(theirs, self._prepared, parent)
            except BaseException as error:
                # Its own output leads nowhere.
                os.write(log, f"warning: the process of a run broke off: {told(error)}\n".encode(errors="replace"))
            finally:
                # Nothing that the warm process would do at its end is the child's to do.
                os._exit(code)
        theirs.close()
        os.close(log)
        self._children[pid] = _Child(pid, Lines(ours), time.monotonic())
        return self._children[pid]

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.get(pid)
            if child is not None:
                if not child.gone:
                    self._listen(child)
                self._let_go(child)
                del self._children[pid]
                self._ended(child, child.key, os.waitstatus_to_exitcode(status))

    def _end_children(self) -> None:
        """Ask all to end: they put their requests back."""
        self._to_queue.clear()
        self._let_go_of_spares()
        self._signal_all(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while self._children and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.02)
        self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: int) -> None:
        for pid in self._children:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def told(error: BaseException) -> str:
    """An error in one line, without secrets."""
    return redact(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")[:500]


def main() -> None:
    """Prepare, and serve the socket whose number is the argument."""
    control = Lines(socket.socket(fileno=int(sys.argv[1])))
    prepared = prepare()
    gc.collect()
    # What is here now is shared with the children for as long as nobody writes to it, which the collector would.
    gc.freeze()
    Warm(control, prepared).serve()


if __name__ == "__main__":
    main()
