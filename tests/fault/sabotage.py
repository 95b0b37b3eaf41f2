"""What goes wrong within the process of a step: in its calls of the system, its stores, its clock."""

from __future__ import annotations

import importlib
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any

Struck = Callable[[], None]


@dataclass(frozen=True)
class FileLimit:
    """No file may grow beyond so many bytes, as on a disk that is full."""

    size: int

    def arm(self, struck: Struck) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@dataclass(frozen=True)
class FaultyCall:
    """The `nth` call of a function of the system fails in the stores with that error; or all do from then on."""

    call: str
    error: int
    nth: int
    lasting: bool

    def arm(self, struck: Struck) -> None:
        faulty = _Faulty(self, struck)
        for module in ("filesystem", "file_writer", "claim"):
            importlib.import_module(f"export_pipelines.stores.{module}").os = faulty  # type: ignore[attr-defined]


class _Faulty:
    """The module `os`, one function of which fails."""

    def __init__(self, fault: FaultyCall, struck: Struck) -> None:
        self._fault, self._struck, self._count = fault, struck, 0

    def __getattr__(self, name: str) -> Any:
        return self._call if name == self._fault.call else getattr(os, name)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        # Only what writes: reading goes on where a disk is full or read-only.
        writes = self._fault.call != "open" or bool(args[1] & os.O_CREAT)
        self._count += writes
        if writes and (self._count == self._fault.nth or (self._fault.lasting and self._count > self._fault.nth)):
            self._struck()
            raise OSError(self._fault.error, os.strerror(self._fault.error), args[0])
        return getattr(os, self._fault.call)(*args, **kwargs)


@dataclass(frozen=True)
class Lie:
    """A store takes a file, reports success, and has other bytes. `at` is the byte, modulo the length."""

    url: str
    at: int

    def arm(self, struck: Struck) -> None:
        from export_pipelines.stores.filesystem import FilesystemStore
        from export_pipelines.stores.s3 import S3Store

        for kind in (FilesystemStore, S3Store):
            kind.writer = self._lying(kind.writer, struck)  # type: ignore[method-assign, union-attr, assignment]

    def _lying(self, original: Any, struck: Struck) -> Any:
        def writer(store: Any, key: str) -> Any:
            made = original(store, key)
            name = key.rsplit("/", 1)[-1]
            if store.url == self.url and (".csv" in name or name.endswith(".identities.zst")):
                write = made.write

                def lying(data: bytes) -> object:
                    if not data:
                        return write(data)
                    at = self.at % len(data)
                    struck()
                    made.write = write
                    return write(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])

                made.write = lying
            return made

        return writer


@dataclass(frozen=True)
class ClockShift:
    """The clock of this host is wrong by so many seconds."""

    seconds: int

    def arm(self, struck: Struck) -> None:
        shift = timedelta(seconds=self.seconds)

        class Shifted(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                struck()
                return datetime.now(tz) + shift

        for module in ("export", "archive", "chain", "cleanup"):
            imported = importlib.import_module(f"export_pipelines.steps.{module}")
            if hasattr(imported, "datetime"):
                imported.datetime = Shifted
