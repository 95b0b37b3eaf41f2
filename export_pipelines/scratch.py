"""Scratch space on disk, for what must not be held in memory."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from export_pipelines.errors import ScratchError


@contextmanager
def scratch_database() -> Iterator[sqlite3.Connection]:
    """An SQLite database in a temporary folder (TMPDIR), without any durability, gone at the end.

    May be used from another thread than the one that made it, one at a time.

    Raises:
        ScratchError: there is no room for it, also when that shows in the middle.
    """
    with scratch_errors(), tempfile.TemporaryDirectory(prefix="export_pipelines-") as folder:
        path = Path(folder) / "scratch.sqlite"
        with closing(sqlite3.connect(path, check_same_thread=False, isolation_level=None)) as database:
            database.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; "
                "PRAGMA cache_size = -32768; BEGIN"
            )
            yield database


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder (TMPDIR) that only we may read, gone at the end.

    Raises:
        ScratchError: there is no room for it, also when that shows in the middle.
    """
    with scratch_errors(), tempfile.TemporaryDirectory(prefix="export_pipelines-") as folder:
        yield Path(folder)


@contextmanager
def scratch_copy(pieces: Iterable[bytes]) -> Iterator[Path]:
    """A file of these bytes in a temporary folder, for what must be read in any order; gone at the end.

    Raises:
        ScratchError: there is no room for it.
    """
    with tempfile.TemporaryDirectory(prefix="export_pipelines-") as folder:
        path = Path(folder) / "copy"
        with path.open("wb") as file:
            for piece in pieces:
                with scratch_errors():
                    file.write(piece)
        yield path


@contextmanager
def scratch_errors() -> Iterator[None]:
    """Turn what a full or unusable disk makes of scratch space into a ScratchError."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        # Stores and connections have errors of their own: these are of the scratch space.
        raise ScratchError(
            f"scratch space cannot be written: {error}",
            hint="free some space in the folder for temporary files, or let TMPDIR be another one",
            transient=True,
        ) from error
