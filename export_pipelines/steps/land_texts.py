"""Values of database drivers as text that PostgreSQL reads as the same value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

from export_pipelines.formats.parsing.json_text import dumps


def row_texts(row: Sequence[Any]) -> list[str | None]:
    """The values of a row; NULL is None."""
    return [None if value is None else value if isinstance(value, str) else _text(value) for value in row]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else {"nan": "NaN", "inf": "Infinity"}.get(str(value), "-Infinity")
    if isinstance(value, bytes | bytearray | memoryview):
        return "\\x" + bytes(value).hex()
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        sign, value = ("-", -value) if value < timedelta() else ("", value)
        minutes, seconds = divmod(value.days * 86_400 + value.seconds, 60)
        fraction = f".{value.microseconds:06d}" if value.microseconds else ""
        return f"{sign}{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}{fraction}"
    return dumps(value) if isinstance(value, dict | list) else str(value)
