"""Records of an archived file as INSERT statements of MySQL and MariaDB."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from export_pipelines.errors import IntegrityError, TargetError
from export_pipelines.manifest import Column
from export_pipelines.sources import mysql_types
from export_pipelines.specs.table import CsvSpec

Literal = Callable[[str], str]

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_BITS = re.compile(r"[01]+")
_BYTES = re.compile(r"\\x((?:[0-9a-f]{2})*)")


class Literals:
    """Turns records of one file into rows of VALUES, by the types of its columns. `filled` are numbers of columns in
    which the server would put another value for NULL."""

    def __init__(self, columns: Sequence[Column], csv: CsvSpec, filled: Sequence[int] = ()) -> None:
        self._filled = filled
        self._literals = [_literal_of(column.type) for column in columns]
        self._csv = csv
        quote, delimiter = re.escape(csv.quote), re.escape(csv.delimiter)
        # One match a field, once the line end has become a delimiter.
        self._field = re.compile(
            f"({quote}[^{quote}]*(?:{quote}{quote}[^{quote}]*)*{quote}|[^{quote}{delimiter}]*){delimiter}"
        )

    def row(self, record: bytes) -> str:
        """`(1,'a',NULL)` for a record with its line end.

        Raises:
            IntegrityError: it is no record of this dialect in UTF-8, or has another number of fields.
            TargetError: it has a NULL for which the server would put another value.
        """
        csv = self._csv
        try:
            text = record.decode()[:-1] + csv.delimiter
        except UnicodeDecodeError as error:
            raise IntegrityError("a record of the CSV is not in UTF-8") from error
        if csv.quote in text:
            fields = self._field.findall(text)
            whole = sum(map(len, fields)) + len(fields) == len(text)
        else:
            fields, whole = text[:-1].split(csv.delimiter), True
        if len(fields) != len(self._literals) or not whole:
            raise IntegrityError(
                f"a record of the CSV has {len(fields)} fields, not {len(self._literals)}",
                hint="nothing was restored; `export-pipelines verify` says more",
            )
        values = list(map(self._value, self._literals, fields))
        if any(values[number] == "NULL" for number in self._filled):
            raise TargetError(
                "a row has NULL where the table has a TIMESTAMP NOT NULL: the server would put the present time there",
                hint="nothing was restored; ALTER that column to TIMESTAMP NULL, or restore into a name that is free",
            )
        return f"({','.join(values)})"

    def _value(self, literal: Literal, field: str) -> str:
        quote = self._csv.quote
        if field[:1] == quote:
            return literal(field[1:-1].replace(quote * 2, quote))
        return "NULL" if field == self._csv.null else literal(field)


def inserts(head: str, rows: Iterable[str], limit: int) -> Iterator[tuple[str, int]]:
    """INSERT statements of at most `limit` bytes, and the number of rows of each; a row that is larger is by itself."""
    parts: list[str] = []
    size = 0
    for row in rows:
        # Only what is not ASCII has more bytes than characters, and that is hardly worth a look.
        more = 1 + (len(row) if row.isascii() else len(row.encode()))
        if parts and len(head) + size + more > limit:
            yield head + ",".join(parts), len(parts)
            parts, size = [], 0
        parts.append(row)
        size += more
    if parts:
        yield head + ",".join(parts), len(parts)


def _literal_of(kind: str) -> Literal:
    if mysql_types.is_real(kind):
        return _real
    if mysql_types.is_number(kind):
        return _number
    if mysql_types.is_bits(kind):
        return _bits
    return _bytes if mysql_types.is_binary(kind) else _string


def _string(value: str) -> str:
    """A literal for the sql_mode of our sessions, in which a backslash escapes."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''").replace("\0", "\\0") + "'"


def _number(value: str) -> str:
    return value if _NUMBER.fullmatch(value) else _string(value)


def _real(value: str) -> str:
    if not _NUMBER.fullmatch(value):
        return _string(value)
    # Without an exponent it would be a decimal, of at most 65 digits.
    return value if "e" in value else f"{value}e0"


def _bits(value: str) -> str:
    return f"b'{value}'" if _BITS.fullmatch(value) else _string(value)


def _bytes(value: str) -> str:
    found = _BYTES.fullmatch(value)
    return f"X'{found[1]}'" if found else _string(value)
