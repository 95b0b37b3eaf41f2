"""Parquet of others as records: each value as text that PostgreSQL reads as the same value."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import count
from typing import Any

from export_pipelines.errors import IntegrityError
from export_pipelines.formats.parsing.base import BadRecord, Batches, Collector, Parsed, checked_columns, encode, shown
from export_pipelines.formats.parsing.json_text import dumps
from export_pipelines.formats.parsing.unpacking import Member, as_file
from export_pipelines.specs.load import FileSpec

_CELLS = 1 << 16
_ROWS = 1 << 13


def parse_parquet(spec: FileSpec, columns: Sequence[str] | None, member: Member) -> Parsed:
    """See `parsing.parse`. All columns are given; what is nested, as JSON; bytes as PostgreSQL's `\\x…`."""
    import pyarrow as pa
    from pyarrow import parquet

    with as_file(member) as file:
        try:
            with parquet.ParquetFile(file) as opened:
                names = checked_columns(opened.schema_arrow.names, spec.max_columns)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(member, error) from error
    return Parsed(names, _batches(member))


def _damaged(member: Member, error: Exception) -> IntegrityError:
    return IntegrityError(f"{member.name} is not intact Parquet: {str(error).splitlines()[0][:300]}")


def _batches(member: Member) -> Batches:
    import pyarrow as pa
    from pyarrow import parquet

    collected, numbers = Collector(), count(1)
    with as_file(member) as file:
        try:
            with parquet.ParquetFile(file) as opened:
                rows = max(1, min(_ROWS, _CELLS // max(1, len(opened.schema_arrow.names))))
                for batch in opened.iter_batches(batch_size=rows, use_threads=False):
                    texts = [_texts(column) for column in batch.columns]
                    for record in zip(*texts, strict=True):
                        yield from _take(collected, next(numbers), record)
                    yield from collected.batches()
        except (pa.ArrowException, OSError) as error:
            raise _damaged(member, error) from error


def _take(collected: Collector, number: int, values: tuple[Any, ...]) -> Iterator[Any]:
    if any("\0" in value for value in values if value):
        yield from collected.batches()
        yield BadRecord(number, "a text has a NUL byte", shown(repr(values)))
        return
    try:
        collected.add(encode(values), number)
    except UnicodeEncodeError:
        yield from collected.batches()
        yield BadRecord(number, "a text is not valid Unicode", shown(ascii(values)))


def _texts(column: Any) -> list[str | None]:
    """The values of an Arrow column as texts."""
    import pyarrow as pa
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        return _texts(column.cast(kind.value_type))
    if types.is_string(kind) or types.is_large_string(kind):
        texts: list[str | None] = column.to_pylist()
        return texts
    if types.is_integer(kind) or types.is_decimal(kind) or types.is_date(kind):
        return list(column.cast(pa.string()).to_pylist())
    if types.is_timestamp(kind):
        return _timestamps(column)
    convert = _converter(kind)
    return [None if value is None else convert(value) for value in column.to_pylist()]


def _timestamps(column: Any) -> list[str | None]:
    """With all digits that they have; PostgreSQL rounds nanoseconds. Times of a zone are told in UTC."""
    import pyarrow as pa

    zoned = column.type.tz is not None
    plain = column.cast(pa.timestamp(column.type.unit))
    return [None if text is None else text + ("+00" if zoned else "") for text in plain.cast(pa.string()).to_pylist()]


def _converter(kind: Any) -> Callable[[Any], str]:
    from pyarrow import types

    if types.is_boolean(kind):
        return lambda value: "true" if value else "false"
    if types.is_floating(kind):
        return _float32 if kind.bit_width == 32 else _float
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return lambda value: "\\x" + value.hex()
    if types.is_time(kind):
        return lambda value: value.isoformat()
    if types.is_duration(kind):
        return _duration
    return lambda value: dumps(_plain(value))


def _float(value: float) -> str:
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(value), repr(value))


def _float32(value: float) -> str:
    """The shortest text that is read as the same float of 32 bits."""
    import numpy

    return _float(float(str(numpy.float32(value))))


def _duration(value: Any) -> str:
    if isinstance(value, datetime.timedelta):
        sign = "-" if value < datetime.timedelta() else ""
        value = abs(value)
        return f"{sign}{value.days * 86400 + value.seconds}.{value.microseconds:06d} seconds"
    return f"{value.value / 1e9:.9f} seconds"


def _plain(value: Any) -> Any:
    """What is nested, as JSON can say it."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, str | int | float | bool | Decimal):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
