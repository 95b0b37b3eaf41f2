"""Values of JSON as text that says exactly what stood there."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any


def text_of(value: Any) -> str | None:
    """A value as PostgreSQL reads it: NULL, `true`, a number as it stood there, a text, or JSON of what is nested.

    Raises:
        ValueError: it has a NUL, which no text of PostgreSQL may have.
        RecursionError: it is nested too deep.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a text has a NUL (\\u0000)")
        return value
    return dumps(value)


def dumps(value: Any) -> str:
    """JSON, numbers exact. Raises ValueError for NaN, and RecursionError."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quoted(str(key))}:{dumps(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumps, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    if "\0" in text:
        raise ValueError("a text has a NUL (\\u0000)")
    return json.dumps(text, ensure_ascii=False)


def loads(text: str) -> Any:
    """Raises ValueError, also for NaN and what is no JSON by its grammar; RecursionError."""
    return json.loads(text, parse_float=Decimal, parse_constant=_no_number)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")
