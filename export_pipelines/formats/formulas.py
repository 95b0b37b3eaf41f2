"""Cells that a spreadsheet would take for formulas, made harmless in records of plain CSV, and as they were again.

A `'` is put before texts that begin with one of = + - @, a tab or a line end and are no numbers, and before those that
begin with more of them, so that it can be undone. Records without such a cell, nearly all, are found by a search
through all bytes at once and are not touched.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from export_pipelines.formats.fields import NUMBERS, Field, Kind
from export_pipelines.formats.texts import quoted

NEVER = NUMBERS | {Kind.BOOLEAN, Kind.UUID, Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ, Kind.BINARY}
"""Kinds of columns that have no formulas."""

_SIGNS = (b"=", b"@", b"+", b"-", b"\t", b"\r", b"'", b',"\n', b'\n"\n')
_DIGITS = rb"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
# The signs come first in the patterns, since a search for them is quick: a cell begins there, in quotes or not, and
# what comes is no number.
_SUSPICIOUS = re.compile(
    rb"[=@+\-\t\r\n'](?:"
    rb"(?<=[,\n]\".)(?:(?<![+-])|(?!" + _DIGITS + rb"\"(?!\")))"
    rb"|(?<=[,\n][^\n])(?:(?<![+-])|(?!" + _DIGITS + rb"[,\n])))",
    re.DOTALL,
)
_MARKED = re.compile(rb"'(?:(?<=[,\n]\"')|(?<=[,\n]'))")
_CELL = re.compile(rb'(?:"([^"]*(?:""[^"]*)*)"|([^,\n]*))([,\n])')
_FORMULA = re.compile(rb"'*[=+\-@\t\r\n]")
_HARMLESS = re.compile(rb"'+[=+\-@\t\r\n]")
_NUMBER = re.compile(rb"'*[+-]?" + _DIGITS)


def harmless(records: list[bytes], fields: Sequence[Field]) -> list[bytes]:
    """Records with their formulas made harmless."""
    whole = b"\n" + b"".join(records)
    if not any(sign in whole for sign in _SIGNS):
        return records
    return _changed(records, whole, _SUSPICIOUS, fields, lambda cell: b"'" + cell if _is(_FORMULA, cell) else cell)


def as_they_were(records: list[bytes], fields: Sequence[Field]) -> list[bytes]:
    """The reverse of `harmless`."""
    whole = b"\n" + b"".join(records)
    if b"'" not in whole:
        return records
    return _changed(records, whole, _MARKED, fields, lambda cell: cell[1:] if _is(_HARMLESS, cell) else cell)


def harmless_names(names: Sequence[str]) -> bytes:
    """A header of plain CSV."""
    fields = [Field(name, Kind.TEXT, "text") for name in names]
    cells = [quoted(field.name, field, single=len(fields) == 1) for field in fields]
    return harmless([(",".join(cells) + "\n").encode()], fields)[0]


def _is(pattern: re.Pattern[bytes], cell: bytes) -> bool:
    return pattern.match(cell) is not None and _NUMBER.fullmatch(cell) is None


def _changed(
    records: list[bytes],
    whole: bytes,
    pattern: re.Pattern[bytes],
    fields: Sequence[Field],
    change: Callable[[bytes], bytes],
) -> list[bytes]:
    """Records, those where a pattern is found changed cell by cell."""
    ends = list(accumulate(map(len, records)))
    found = {bisect_right(ends, match.start() - 1) for match in pattern.finditer(whole)}
    if not found:
        return records
    texts = [field.kind not in NEVER for field in fields]
    records = list(records)
    for number in found - {len(records)}:
        records[number] = _each(records[number], texts, change)
    return records


def _each(record: bytes, texts: Sequence[bool], change: Callable[[bytes], bytes]) -> bytes:
    parts = []
    for text, cell in zip(texts, _CELL.finditer(record), strict=True):
        inner, plain, end = cell.groups()
        if not text:
            parts.append(cell[0])
        elif inner is not None:
            parts.append(b'"' + change(inner) + b'"' + end)
        else:
            parts.append(change(plain) + end)
    return b"".join(parts)
