"""Whether the project's files have changed: by their names, sizes and times, which takes milliseconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from export_pipelines.settings import Settings

Stamp = frozenset[tuple[str, int, int]]


def stamp_of(settings: Settings) -> Stamp:
    """What the definitions are read from, as it is now."""
    folders = [settings.root / name for name in ("assets", "resources", "schedules")]
    if settings.dsl_path is not None:
        folders.append(settings.dsl_path)
    workspace = settings.root / "workspace.yaml"
    found = {entry for folder in folders for entry in _entries(str(folder))}
    if workspace.exists():
        found.add(_entry(workspace))
    return frozenset(found)


def _entries(folder: str) -> Iterator[tuple[str, int, int]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith((".", "__pycache__")):
                    continue
                if entry.is_dir():
                    yield from _entries(entry.path)
                else:
                    about = entry.stat()
                    yield entry.path, about.st_mtime_ns, about.st_size
    except OSError:
        # It went while we looked: that is a change by itself.
        return


def _entry(path: Path) -> tuple[str, int, int]:
    about = path.stat()
    return str(path), about.st_mtime_ns, about.st_size
