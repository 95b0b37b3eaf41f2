"""When each artifact was last verified: what an incremental verify goes by, in the catalog or in a file.

It decides the order only, and that a problem which was seen stays told until its file is read and found intact. Nothing
is taken for verified on its word.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from export_pipelines.catalog import Catalog, VerificationRow
from export_pipelines.errors import RequestError

_VERSION = 1


class VerificationState(Protocol):
    """Remembers verifications, by table, archive and number of the manifest."""

    def last(self, table_id: str, archive_url: str) -> Mapping[int, VerificationRow]:
        """The last verification of each artifact that ever was verified."""

    def note(self, table_id: str, archive_url: str, found: Sequence[VerificationRow]) -> None:
        """Remember some, in place of what was known of the same artifacts."""


class Forgetful:
    """Knows of none and remembers none."""

    def last(self, table_id: str, archive_url: str) -> Mapping[int, VerificationRow]:
        return {}

    def note(self, table_id: str, archive_url: str, found: Sequence[VerificationRow]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class InCatalog:
    """State in the catalog."""

    catalog: Catalog
    run_id: str = ""

    def last(self, table_id: str, archive_url: str) -> Mapping[int, VerificationRow]:
        return self.catalog.verifications(table_id, archive_url)

    def note(self, table_id: str, archive_url: str, found: Sequence[VerificationRow]) -> None:
        self.catalog.note_verifications(table_id, archive_url, found, self.run_id)


class InFile:
    """State in a JSON file, for who has no catalog. It is replaced as a whole, so a crash leaves the one before.

    Raises:
        RequestError: the file is there and is none of ours, or it cannot be read or written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, dict[str, dict[str, Any]]] = {}
        if file.exists():
            try:
                said = json.loads(file.read_bytes())
                if said["version"] != _VERSION:
                    raise ValueError
                self._known = said["archives"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise RequestError(f"{file} is no state of verify", hint="give the name of a new file") from error

    def last(self, table_id: str, archive_url: str) -> Mapping[int, VerificationRow]:
        table = self._known.get(archive_url, {}).get(table_id, {})
        return {
            int(number): VerificationRow(
                int(number), datetime.fromisoformat(each["verified_at"]), each["intact"], each["problem"]
            )
            for number, each in table.items()
        }

    def note(self, table_id: str, archive_url: str, found: Sequence[VerificationRow]) -> None:
        table = self._known.setdefault(archive_url, {}).setdefault(table_id, {})
        for each in found:
            table[str(each.sequence)] = {
                "verified_at": each.verified_at.isoformat(),
                "intact": each.intact,
                "problem": each.problem,
            }
        new = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            new.write_text(json.dumps({"version": _VERSION, "archives": self._known}, indent=1) + "\n")
            new.replace(self._file)
        except OSError as error:
            raise RequestError(f"{self._file} cannot be written: {error.strerror}") from error
