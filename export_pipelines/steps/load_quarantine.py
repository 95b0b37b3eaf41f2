"""Records that do not fit: gathered, counted against the limits, and put into `<table>__quarantine`."""

from __future__ import annotations

import csv
import io
import tempfile
from array import array
from collections.abc import Iterator
from typing import Any

from export_pipelines.errors import TargetError
from export_pipelines.scratch import scratch_errors
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.load import QuarantineSpec
from export_pipelines.steps.copying import copy_in
from export_pipelines.steps.load_reading import RECORDS, LandedFile
from export_pipelines.targets.names import TableNames

_RECORD_CHARACTERS = 2_000
_IN_MEMORY = 4 << 20
_SHOWN = 5


class TooMany(Exception):
    """More records do not fit than the definition lets pass."""


class Quarantine:
    """What does not fit of one file. Kept in a temporary file, so that memory is bounded whatever the limit.

    A few more than the limit are taken, so that an error can tell them.
    """

    def __init__(self, spec: QuarantineSpec, file: LandedFile) -> None:
        self._spec = spec
        self._landed = file
        self._first: list[tuple[int | None, int | None, str, str]] = []
        self._numbers: array[int] = array("q")
        self._file: Any = tempfile.SpooledTemporaryFile(_IN_MEMORY, prefix="export_pipelines-")  # noqa: SIM115  # closed by close()
        self.count = 0

    def bad_record(self, line: int, reason: str, text: str | None) -> None:
        """Note a record that cannot be read. Raises TooMany."""
        self._add(line, None, "", reason, text, None)

    def bad_row(self, number: int, column: str, reason: str, record: str, raw_id: int | None) -> None:
        """Note a record that cannot be converted, by its number in the file from 1. Raises TooMany."""
        self._numbers.append(number)
        self._add(None, number, column, reason, record, raw_id)

    def _add(
        self, line: int | None, number: int | None, column: str, reason: str, record: str | None, raw: int | None
    ) -> None:
        self.count += 1
        if len(self._first) < _SHOWN:
            self._first.append((line, number, column, reason))
        text = io.StringIO()
        row = [line, number, column or None, reason, _shortened(record), raw]
        csv.writer(text, lineterminator="\n").writerow(["" if part is None else str(part) for part in row])
        with scratch_errors():
            self._file.write(text.getvalue().replace("\0", "\ufffd").encode("utf-8", "replace"))
        if self.count >= self.most:
            raise TooMany

    @property
    def most(self) -> int:
        """With so many, it is too many."""
        return self._spec.max_rows + _SHOWN

    def refuse(self, rows: int) -> None:
        """Raises TargetError: more did not fit than may, where `rows` did."""
        share = self.count / (self.count + rows) if self.count else 0
        if self.count > self._spec.max_rows or share > self._spec.max_share:
            raise self.error()

    def error(self) -> TargetError:
        """Tells the first few with line and column."""
        lines = dict(self._landed.lines(sorted(number for _, number, _, _ in self._first if number)))
        first = sorted(
            (line or lines.get(number or 0, 0), column, reason) for line, number, column, reason in self._first
        )
        told = "; ".join(
            f"line {line or '?'}{f', column {column!r}' if column else ''}: {reason}" for line, column, reason in first
        )
        more = " or more" if self.count >= self._spec.max_rows + _SHOWN else ""
        name, alone = self._landed.landed.name, self.count == 1 and not more
        counted = f"1 record of {name} does" if alone else f"{self.count}{more} records of {name} do"
        return TargetError(
            f"{counted} not fit, {self._spec.max_rows} may: {told}",
            hint="mend the file or the definition, raise `quarantine: {max_rows: …}`, or leave the file out by "
            "`export-pipelines load ignore`; nothing was loaded",
        )

    def write(self, session: Session, names: TableNames, entry: int) -> None:
        """Put them into the table, instead of those that an earlier attempt put there."""
        session.execute(f"DELETE FROM {names.quarantine} WHERE file_id = %s", (entry,))
        if not self.count:
            return
        session.execute(
            'CREATE TEMPORARY TABLE "load misfits" (line bigint, number bigint, column_name text, reason text, '
            'record text, raw_id bigint) ON COMMIT DROP; CREATE TEMPORARY TABLE "load lines" (number bigint, line '
            "bigint) ON COMMIT DROP"
        )
        self._file.seek(0)
        session.copy_in('pg_temp."load misfits"', RECORDS, self._file.read)
        copy_in(session, 'pg_temp."load lines"', RECORDS, self._lines())
        session.execute(
            f"INSERT INTO {names.quarantine} (file_id, file_name, file_line, column_name, reason, record, raw_id) "
            "SELECT %s, %s, coalesce(m.line, l.line), m.column_name, m.reason, m.record, m.raw_id "
            'FROM pg_temp."load misfits" AS m LEFT JOIN pg_temp."load lines" AS l ON l.number = m.number',
            (entry, self._landed.landed.name),
        )

    def _lines(self) -> Iterator[bytes]:
        for number, line in self._landed.lines(sorted(self._numbers)):
            yield b"%d,%d\n" % (number, line)

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()


def _shortened(record: str | None) -> str | None:
    if record is None or len(record) <= _RECORD_CHARACTERS:
        return record
    return record[:_RECORD_CHARACTERS] + "…"
