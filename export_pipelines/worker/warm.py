"""The warm process: it has everything imported and the project read, and forks a child for each run.

`python -m export_pipelines.worker.warm FD`, started by the worker. FD is a socket with a JSON object a line.

    worker → {"do": "run", "key": …, …}  a child takes it (child.py says what may stand in it)
             {"do": "signal", "pid": …, "signal": …}
             {"do": "retire"}             end when the last child has ended
    warm   → {"ready": true, "errors": […]}
             {"began": key, "pid": …}
             {"ended": key, "pid": …, "code": …}   code as of `waitpid`, negative for a signal

It has no threads, no connections and no open files of its own: a fork of it is clean. One child is always forked ahead,
connected and waiting, so that a run does not wait for a fork. When the worker is gone, so are the children and this
process.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from export_pipelines.worker.child import Prepared, be_a_child, prepare
from export_pipelines.worker.lines import Lines

SPARE_SECONDS = 120.0
"""A spare child that nobody wanted for so long is replaced: its connections may have been cut."""
_IDLE_SECONDS = 0.2


@dataclass
class _Child:
    pid: int
    pipe: int
    """Where it reads what to do."""
    born: float
    key: str = ""


class Warm:
    """The process's state."""

    def __init__(self, control: Lines, prepared: Prepared) -> None:
        self._control = control
        self._prepared = prepared
        self._children: dict[int, _Child] = {}
        self._spare: _Child | None = None
        self._retired = False
        self._wake, wakened = os.pipe()
        os.set_blocking(wakened, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(wakened)
        self._wakened = wakened
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A Ctrl-C of the terminal reaches us as well: the worker says when to end.
            signal.signal(kind, signal.SIG_IGN)

    def serve(self) -> None:
        """Until the worker is gone, or we are retired and the last child has ended."""
        self._control.send({"ready": True, "errors": self._prepared.errors})
        while not (self._retired and not self._busy()):
            watched: list[Any] = [self._control, self._wake]
            ready, _, _ = select.select(watched, [], [], _IDLE_SECONDS)
            if self._wake in ready:
                with suppress(BlockingIOError):
                    os.read(self._wake, 4096)
            self._reap()
            if self._control in ready:
                if not self._obey():
                    break
            elif not ready:
                self._keep_spare()
        self._end_children()

    def _busy(self) -> bool:
        return any(child is not self._spare for child in self._children.values())

    def _obey(self) -> bool:
        """What the worker says; False when it is gone."""
        messages = self._control.receive()
        for message in messages or ():
            match message["do"]:
                case "run":
                    self._run(message)
                case "signal":
                    # Only what has not been reaped: the number may be another process's by now.
                    if message["pid"] in self._children:
                        os.kill(message["pid"], message["signal"])
                case "retire":
                    self._retired = True
                    self._drop_spare()
        return messages is not None

    def _run(self, message: dict[str, Any]) -> None:
        child, self._spare = self._spare or self._fork(), None
        child.key = message["key"]
        try:
            os.write(child.pipe, json.dumps(message).encode() + b"\n")
        except OSError:
            # The spare has died: another one takes it.
            child.key = ""
            child = self._fork()
            child.key = message["key"]
            os.write(child.pipe, json.dumps(message).encode() + b"\n")
        os.close(child.pipe)
        child.pipe = -1
        self._control.send({"began": child.key, "pid": child.pid})

    def _keep_spare(self) -> None:
        if self._retired:
            return
        if self._spare is not None and time.monotonic() - self._spare.born > SPARE_SECONDS:
            self._drop_spare()
        if self._spare is None:
            self._spare = self._fork()

    def _drop_spare(self) -> None:
        if self._spare is not None:
            # At the end of its pipe it ends.
            os.close(self._spare.pipe)
            self._spare.pipe = -1
            self._spare = None

    def _fork(self) -> _Child:
        theirs, ours = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                for descriptor in (ours, self._wake, self._wakened, self._control.fileno()):
                    os.close(descriptor)
                for other in self._children.values():
                    if other.pipe >= 0:
                        os.close(other.pipe)
                code = be_a_child(theirs, self._prepared, parent)
            except BaseException as error:
                sys.stderr.write(f"a child failed: {type(error).__name__}: {error}\n")
                code = 1
            finally:
                sys.stderr.flush()
                # Nothing that the warm process would do at its end is the child's to do.
                os._exit(code)
        os.close(theirs)
        self._children[pid] = _Child(pid, ours, time.monotonic())
        return self._children[pid]

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is None:
                continue
            if child is self._spare:
                self._drop_spare()
            if child.key:
                self._control.send({"ended": child.key, "pid": pid, "code": os.waitstatus_to_exitcode(status)})

    def _end_children(self) -> None:
        """Ask all to end: they put their requests back."""
        self._drop_spare()
        for pid in self._children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 5
        while self._children and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.02)
        for pid in self._children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


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
