"""What Excel holds of each kind of value, and how: all its numbers are doubles, and its times are numbers of days."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from export_pipelines.errors import FormatError
from export_pipelines.formats.arrow import text_of, typed
from export_pipelines.formats.fields import NUMBERS, Field, Kind
from export_pipelines.formats.texts import first_where
from export_pipelines.specs.format import ANY_COLUMN, FormatSpec

MOST_ROWS = 1_048_576
MOST_COLUMNS = 16_384
MOST_CHARACTERS = 32_767
DIGITS = 15
"""Decimal digits that a double holds, and that Excel shows."""
_EPOCH = 25_569
"""1970-01-01 in days of Excel."""
_FIRST = 61
"""1900-03-01: the days before it, Excel counts with a 29th of February that never was."""
_DAY_MS = 86_400_000
_TIMES = (Kind.TIMESTAMP, Kind.TIMESTAMPTZ)


class Held(StrEnum):
    """How a column is held."""

    TEXT = "text"
    BOOLEAN = "boolean"
    NUMBER = "number"
    """In the digits of the source."""
    CHECKED = "checked"
    """A number; of more than 15 digits it is an error."""
    ROUNDED = "rounded"
    """A number, and the nearest double if it has more digits."""
    DATE = "date"
    TIME = "time"
    """A date with a time, to the millisecond; more is an error."""
    ROUNDED_TIME = "rounded time"


def letters(number: int) -> str:
    """The name of a column, counted from 0."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(65 + rest) + text
    return text


def declared(spec: FormatSpec, field: Field) -> str:
    """The conversion of a column; of those that none names, `"*"` if they need one."""
    if field.name in spec.conversions:
        return spec.conversions[field.name]
    return spec.conversions.get(ANY_COLUMN, "") if inexact(field) else ""


def inexact(field: Field) -> str:
    """Why Excel does not hold all values of a column exactly; empty if it does, or holds them as text."""
    if field.kind is Kind.INTEGER and (field.bits or 64) > 32:
        return f"{field.type} has more than {DIGITS} digits"
    if field.kind is Kind.NUMERIC or (field.kind is Kind.DECIMAL and _places(field) > DIGITS):
        return f"{field.type} has more than {DIGITS} digits"
    if field.kind is Kind.TIMESTAMP and (field.precision is None or field.precision > 3):
        return f"{field.type} is finer than a millisecond"
    return ""


def _places(field: Field) -> int:
    precision, scale = field.precision or 0, field.scale or 0
    return max(precision - min(scale, 0), scale)


def held(spec: FormatSpec, field: Field) -> Held:
    """How a column is held by what was declared of it."""
    how = declared(spec, field)
    if field.kind is Kind.TIMESTAMPTZ and how not in ("datetime", "checked"):
        return Held.TEXT
    if how == "text":
        return Held.TEXT
    if field.kind in _TIMES:
        return Held.ROUNDED_TIME if how == "datetime" else Held.TIME
    if field.kind is Kind.DATE:
        return Held.DATE
    if field.kind is Kind.BOOLEAN:
        return Held.BOOLEAN
    if field.kind in NUMBERS:
        return {"checked": Held.CHECKED, "float": Held.ROUNDED}.get(how, Held.NUMBER)
    return Held.TEXT


def serials(column: Any, field: Field, how: Held) -> tuple[Any, bool]:
    """A column of numbers, dates or times as digits, and whether its text comes back by `text_of`.

    Raises:
        FormatError: a value does not fit.
    """
    if how in (Held.NUMBER, Held.CHECKED, Held.ROUNDED):
        return _numbers(column, field, how)
    import pyarrow as pa
    from pyarrow import compute

    kind = {Held.DATE: pa.date32()}.get(how, pa.timestamp("us", "UTC" if field.kind is Kind.TIMESTAMPTZ else None))
    values, _ = typed(column, field, kind, "Excel")
    days = _days(values, how)
    early = compute.less(days, _FIRST)
    if compute.any(early).as_py():
        raise _misfit(column, field, early, "is before March 1900, where Excel's calendar is wrong")
    back = text_of(_from_days(days, kind), field, kind)
    fine = compute.not_equal(back, column)
    same = not compute.any(fine).as_py()
    if not same and how is Held.TIME and field.kind is not Kind.TIMESTAMPTZ:
        raise _misfit(column, field, fine, "is finer than a millisecond")
    return _digits(days), same


def text_of_serial(texts: Any, field: Field, how: Held) -> Any:
    """Digits of a date or time of Excel as the source's text."""
    import pyarrow as pa
    from pyarrow import compute

    zone = "UTC" if field.kind is Kind.TIMESTAMPTZ else None
    kind = pa.date32() if how is Held.DATE else pa.timestamp("us", zone)
    return text_of(_from_days(compute.cast(texts, pa.float64()), kind), field, kind)


def _days(values: Any, how: Held) -> Any:
    import pyarrow as pa
    from pyarrow import compute

    if how is Held.DATE:
        return compute.add(compute.cast(compute.cast(values, pa.int32()), pa.float64()), _EPOCH)
    micros = compute.cast(values, pa.int64())
    millis = compute.floor(compute.divide(compute.add(compute.cast(micros, pa.float64(), safe=False), 500.0), 1000.0))
    return compute.add(compute.divide(millis, float(_DAY_MS)), float(_EPOCH))


def _from_days(days: Any, kind: Any) -> Any:
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_date(kind):
        return compute.cast(compute.cast(compute.subtract(days, _EPOCH), pa.int32()), kind)
    millis = compute.round(compute.multiply(compute.subtract(days, float(_EPOCH)), float(_DAY_MS)))
    return compute.cast(compute.multiply(compute.cast(millis, pa.int64()), 1000), kind)


def _digits(days: Any) -> Any:
    import pyarrow as pa
    from pyarrow import compute

    return compute.replace_substring_regex(compute.cast(days, pa.string()), r"\.0$", "")


def _numbers(column: Any, field: Field, how: Held) -> tuple[Any, bool]:
    from pyarrow import compute

    none = compute.match_substring_regex(column, "[NI]")
    if field.engine == "opensearch":
        none = compute.invert(compute.match_substring_regex(column, r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"))
    if compute.any(none).as_py():
        raise _misfit(column, field, none, "is no number of Excel")
    if how is Held.CHECKED and field.kind is not Kind.FLOAT:
        digits = compute.utf8_length(compute.replace_substring_regex(column, r"^-?0*\.?0*|\.|0+$", ""))
        long = compute.greater(digits, DIGITS)
        if compute.any(long).as_py():
            raise _misfit(column, field, long, f"has more than the {DIGITS} digits that Excel holds")
    return column, how is not Held.ROUNDED


def _misfit(column: Any, field: Field, where: Any, why: str) -> FormatError:
    return FormatError(
        f"column {field.name!r} has {first_where(column, where)!r}, which {why}",
        hint=f"declare `conversions: {{{field.name}: text}}`",
    )
