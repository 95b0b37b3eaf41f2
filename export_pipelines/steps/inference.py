"""Types of the columns of a file, by what its first records hold."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from export_pipelines.formats.parsing import BadRecord, Parsed

SAMPLE = 20_000
"""Records that are looked at."""

_KEPT = 200

_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,3})?")
_BOOLEAN = ("true", "false", "t", "f", "yes", "no")


@dataclass
class Inferred:
    """A column of a file, and the narrowest type that all of its values fit."""

    name: str
    """In the file."""
    values: int = 0
    """How many were looked at, NULL left out."""
    nulls: int = 0
    example: str = ""
    types: list[str] = field(
        default_factory=lambda: ["boolean", "bigint", "numeric", "date", "timestamp", "timestamptz"]
    )

    misfits: dict[str, str] = field(default_factory=dict)
    """Of each type that is none, the first value that did not fit."""

    @property
    def type(self) -> str:
        """PostgreSQL's type; text where nothing was seen, or where values fit no other."""
        return self.types[0] if self.types and self.values else "text"

    def see(self, value: str | None) -> None:
        """Take in a value."""
        if value is None:
            self.nulls += 1
            return
        self.values += 1
        self.example = self.example or value[:60]
        for each in [each for each in self.types if not _fits(each, value)]:
            self.types.remove(each)
            self.misfits[each] = value[:60]


def infer(
    parsed: Parsed, sample: int = SAMPLE, kept: list[tuple[str | None, ...]] | None = None, keep: int = 10
) -> list[Inferred]:
    """The columns of a file that is being read. Records that cannot be taken apart are passed over. The first `keep`
    records are put into `kept`, long values cut."""
    found = [Inferred(name) for name in parsed.columns]
    for number, record in enumerate(_records(parsed)):
        if number >= sample:
            break
        if kept is not None and number < keep:
            kept.append(tuple(value and value[:_KEPT] for value in record))
        for column, value in zip(found, record, strict=False):
            column.see(value)
    return found


def _records(parsed: Parsed) -> Iterator[Sequence[str | None]]:
    """Records as values; an empty one is NULL: telling it from `""` makes no difference to the type."""
    for batch in parsed.batches:
        if isinstance(batch, BadRecord):
            continue
        for record in csv.reader(io.StringIO(batch.records.decode(), newline="")):
            yield [value or None for value in record] or [None]


def _fits(kind: str, value: str) -> bool:
    match kind:
        case "boolean":
            return value.lower() in _BOOLEAN
        case "bigint":
            return bool(_INTEGER.fullmatch(value))
        case "numeric":
            return bool(_NUMBER.fullmatch(value))
        case "date":
            return len(value) == 10 and _parses(date, value)
        case "timestamp":
            return len(value) > 10 and _parses(datetime, value) and datetime.fromisoformat(value).tzinfo is None
    return len(value) > 10 and _parses(datetime, value) and datetime.fromisoformat(value).tzinfo is not None


def _parses(kind: type[date], value: str) -> bool:
    try:
        kind.fromisoformat(value)
    except ValueError:
        return False
    return value[:4].isdigit() and value[4:5] == "-"
