"""All errors that this library raises on purpose.

    ExportPipelinesError
    ├── SpecError              a definition is wrong: file, line and field are named
    │   └── SpecErrors         several of them at once
    ├── SourceError            the source database refused or failed
    ├── StoreError             a store (filesystem, S3) refused or failed
    │   ├── ObjectExists       the name is taken: published artifacts are never overwritten
    │   └── ObjectMissing      there is no object of that name
    ├── IntegrityError         bytes, rows or digests are not what a manifest says
    ├── ScratchError           the folder for temporary files is full or cannot be written
    ├── CatalogError           the metadata database is missing, old or unreachable
    ├── PartitionBusy          another run is at work on the same partition or table
    ├── CleanupRefused         a cleanup would not be safe; nothing was deleted by this attempt
    │   └── Held               somebody has placed a hold
    ├── ExpireRefused          an archived file may not be given up; it was not
    ├── TargetError            the table to restore or load into is not fit for it
    ├── FormatError            a value does not fit into the format of the file
    └── RequestError           what was asked for does not exist or cannot be done
        ├── BadRange           a range that can never be, whatever the data: wrong usage
        └── IdentityNeeded     a file is encrypted, and no identity that is here opens it

A message is one sentence of what was seen against what was expected; `hint` says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class ExportPipelinesError(Exception):
    """Base of all. `transient` errors may go away by themselves and are retried; others are not."""

    transient: bool = False

    def __init__(self, message: str, *, hint: str = "", transient: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if transient is not None:
            self.transient = transient

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class SpecError(ExportPipelinesError):
    """A definition is wrong. `line` counts from 1; 0 when the error concerns the whole file."""

    def __init__(self, message: str, *, file: Path | str, line: int = 0, field: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.file = Path(file)
        self.line = line
        self.field = field

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else str(self.file)
        where = f"{place}: {self.field}: " if self.field else f"{place}: "
        return where + super().__str__()


class SpecErrors(SpecError):
    """Every error found in a set of definitions, so that they can be mended in one go."""

    def __init__(self, errors: Sequence[SpecError]) -> None:
        first = errors[0]
        super().__init__(first.message, file=first.file, line=first.line, field=first.field, hint=first.hint)
        self.errors = list(errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class SourceError(ExportPipelinesError):
    """A source, or the target, refused or failed. `code` is a database's SQLSTATE, empty when the connection failed."""

    def __init__(self, message: str, *, hint: str = "", transient: bool | None = None, code: str = "") -> None:
        super().__init__(message, hint=hint, transient=transient)
        self.code = code


class StoreError(ExportPipelinesError):
    """A store refused or failed."""


class ObjectExists(StoreError):
    """The name is taken; a published artifact is never overwritten."""


class ObjectMissing(StoreError):
    """There is no object of that name."""


class IntegrityError(ExportPipelinesError):
    """Bytes, rows or digests are not what a manifest says. Never transient: look before going on."""


class ScratchError(ExportPipelinesError):
    """The folder for temporary files is full or cannot be written."""


class CatalogError(ExportPipelinesError):
    """The metadata database is missing, of an older version, or unreachable."""


class PartitionBusy(ExportPipelinesError):
    """Another run is at work on the same partition or table; this one did nothing."""


class CleanupRefused(ExportPipelinesError):
    """A cleanup would not be safe. Batches committed before the refusal stay deleted, all of them archived."""


class Held(CleanupRefused):
    """A hold exempts the rows from cleanup."""


class ExpireRefused(ExportPipelinesError):
    """An archived file may not be given up: it is held, in use, or not what was decided about. It is as it was."""


class TargetError(ExportPipelinesError):
    """The table to restore or load into is not fit for it; it is as it was."""


class FormatError(ExportPipelinesError):
    """A value does not fit into the format of the file, and no conversion of its column was declared."""


class RequestError(ExportPipelinesError):
    """What was asked for does not exist or cannot be done: an unknown table, a partition out of range."""


class BadRange(RequestError):
    """A range of times or partitions that can never be: no time, the wrong way round, missing, or not wanted at all.
    The command line ends with exit code 2, as for any wrong usage."""


class IdentityNeeded(RequestError):
    """A file is encrypted, and no private identity that is here opens it."""
