"""A step in a process of its own, which can be held at any point, killed, or sabotaged from within.

A *point* is one call of a function by which the steps touch the world: a statement, a word to the catalog, a file.
The points of a step are numbered as it comes by them, so that a fault can strike at each edge.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal, Protocol

from export_pipelines.catalog import Catalog
from export_pipelines.errors import ExportPipelinesError
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.expire import ExpireResult
from export_pipelines.stores import Store, open_store
from export_pipelines.windows import Window
from tests.support.processes import context
from tests.support.tables import Kit

POINTS = {
    "sources.postgres:Session": ("begin", "execute", "copy_out", "commit", "rollback"),
    "sources.mysql:MysqlSession": ("begin", "execute", "change", "stream", "commit", "rollback"),
    "catalog:Catalog": (
        *("begin_export", "finish_export", "fail_export", "exports", "mark_archived", "head", "advance_head"),
        *("begin_batch", "settle_batch", "batches", "note_receipt", "save_cleanup", "holds"),
    ),
    "catalog.fence:Fence": ("begin_expire", "finish_expire"),
    "stores.filesystem:FilesystemStore": ("writer", "put", "open", "head", "delete"),
    "stores.file_writer:FileWriter": ("write", "publish"),
    "stores.s3:S3Store": ("writer", "put", "open", "head", "delete"),
    "stores.s3_writer:S3Writer": ("write", "publish"),
}
STEP_SECONDS = 120.0


class Sabotage(Protocol):
    """Something that goes wrong within the process. `struck` is to be called when it does."""

    def arm(self, struck: Any) -> None: ...


@dataclass(frozen=True)
class Halt:
    """At the `number`-th point (of a name, if there is one), before or after the call, the process stops and waits for
    what it is told."""

    side: Literal["before", "after"]
    number: int
    name: str = ""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: `done`, `refused` (one of our errors), `died`, or `broken` (any other error)."""

    ended: Literal["done", "refused", "died", "broken"]
    error: str = ""
    text: str = ""
    code: str = ""
    transient: bool = False
    points: int = 0
    struck: int = 0
    """How often a sabotage from within has struck."""


@dataclass
class LedgerTable(Kit):
    """A table with a ledger. `environment` is what its processes find; the archive may be in S3."""

    archive_url: str = ""
    catalog_line: str = ""
    """Another way to the catalog, if not empty."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def context(self) -> StepContext:
        """What a step is given, made anew."""
        return StepContext(
            table=self.table,
            source=PostgresSource(self.database),
            exports=open_store((self.folder / "exports").as_uri()),
            archive=_store(self.archive_url, os.environ.get("AWS_ENDPOINT_URL", "")),
            catalog=Catalog(self.catalog_line or self.catalog_url),
            run_id="run",
        )

    def expire(self, window: Window | None = None, **options: Any) -> ExpireResult:  # type: ignore[override]
        """Of the whole table, whatever the window."""
        return super().expire(**options)


@cache
def _store(url: str, endpoint: str) -> Store:
    """A client of S3 takes long to make."""
    return open_store(url)


class Interrupted(BaseException):
    """What SIGTERM becomes, as in a run of Dagster."""


class Attempt:
    """A running attempt at a step."""

    def __init__(
        self,
        table: LedgerTable,
        step: str,
        window: Window,
        *,
        halt: Halt | None = None,
        sabotage: Sabotage | None = None,
    ) -> None:
        self._line, childs = context.Pipe()
        self.process = context.Process(target=_work, args=(childs, table, step, window, halt, sabotage), daemon=True)
        self.process.start()
        childs.close()
        self._struck = 0
        self._ending: Outcome | None = None
        assert self._wait("begun") or self._ending

    def halted(self) -> bool:
        """Wait for the point; False if the step ended without coming by it."""
        return self._wait("at")

    def running(self) -> bool:
        """Whether the step is still at work, as far as is known."""
        return self._ending is None and not self._line.poll() and self.process.is_alive()

    def go_on(self) -> None:
        """Let a halted process go."""
        with suppress(OSError):
            self._line.send("go")

    def signal(self, number: int) -> bool:
        """Send a signal; True if there was a process to get it."""
        if self._ending is not None or not self.process.is_alive():
            return False
        os.kill(self.process.pid, number)
        return True

    def finish(self) -> Outcome:
        """Wait for the end."""
        self._wait("")
        assert self._ending is not None
        return self._ending

    def _wait(self, wanted: str) -> bool:
        deadline = time.monotonic() + STEP_SECONDS
        while self._ending is None:
            if not self._line.poll(max(0.0, deadline - time.monotonic())):
                self.process.kill()
                self.process.join()
                raise AssertionError(f"the step did not end within {STEP_SECONDS:.0f} s")
            try:
                kind, *rest = self._line.recv()
            except (EOFError, OSError):
                self._ending = Outcome("died", struck=self._struck)
            else:
                if kind == "struck":
                    self._struck += 1
                elif kind == "ended":
                    ended, error, text, code, transient, points = rest
                    self._ending = Outcome(ended, error, text, code, transient, points, self._struck)
                elif kind == wanted:
                    return True
        self.process.join(30)
        self._line.close()
        return False


def _work(
    line: Any, table: LedgerTable, step: str, window: Window, halt: Halt | None, sabotage: Sabotage | None
) -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.update(table.environment)
    points = _Points(line, halt)
    points.arm()
    if sabotage is not None:
        sabotage.arm(lambda: points.tell("struck"))
    points.tell("begun")
    ended, error, text, code, transient = "done", "", "", "", False
    try:
        getattr(table, step)(window)
    except ExportPipelinesError as caught:
        ended, error, text = "refused", type(caught).__name__, str(caught)
        code, transient = getattr(caught, "code", ""), caught.transient
    except Interrupted:
        ended, error = "refused", "Interrupted"
    except BaseException as caught:
        ended, error, text = "broken", type(caught).__name__, traceback.format_exc()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    points.tell("ended", ended, error, text, code, transient, points.count)


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted


class _Points:
    """Counts the calls, and halts at one of them."""

    def __init__(self, line: Any, halt: Halt | None) -> None:
        self._line, self._halt = line, halt
        self._lock = threading.Lock()
        self.count = self._fitting = 0

    def tell(self, *message: Any) -> None:
        with self._lock:
            self._line.send(message)

    def arm(self) -> None:
        for place, names in POINTS.items():
            module, _, owner = place.partition(":")
            kind = getattr(importlib.import_module(f"export_pipelines.{module}"), owner)
            for name in names:
                setattr(kind, name, self._watched(getattr(kind, name), f"{owner}.{name}"))

    def _watched(self, original: Any, name: str) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            fits = self._halt is not None and self._halt.name in ("", name)
            self._fitting += fits
            here = fits and self._fitting == self._halt.number
            if here and self._halt.side == "before":
                self._stop(name)
            result = original(*args, **kwargs)
            if here and self._halt.side == "after":
                self._stop(name)
            return result

        return watched

    def _stop(self, name: str) -> None:
        self.tell("at", name)
        self._line.recv()


def day_window(day: str) -> Window:
    """The window of a day in UTC."""
    start = datetime.fromisoformat(f"{day}T00:00:00+00:00").astimezone(UTC)
    return Window(day, start, start.replace(day=start.day + 1))
