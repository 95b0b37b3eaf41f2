"""JSON of OpenSearch with numbers in the very digits that were stored: a double would be another number."""

from __future__ import annotations

import json
from typing import Any


class Number(str):
    """A number as it stands in the JSON."""

    __slots__ = ()


def exact_loads(text: str) -> Any:
    """A JSON text as values, numbers as `Number`. Raises ValueError."""
    return json.loads(text, parse_int=Number, parse_float=Number, parse_constant=Number)


def exact_dumps(value: Any) -> str:
    """The reverse of `exact_loads`; plain numbers may be in it, too."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{exact_dumps(str(key))}: {exact_dumps(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(exact_dumps, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def picked(source: dict[str, Any], path: str) -> Any:
    """The value of a field in a document, which may write `a.b` as one name or as objects within each other; of an
    array of objects, the array of their values. None if there is none."""
    if path in source:
        return source[path]
    found: list[Any] = []
    several = False
    for cut in (number for number, sign in enumerate(path) if sign == "."):
        inner = source.get(path[:cut])
        several = several or isinstance(inner, list)
        for each in inner if isinstance(inner, list) else [inner]:
            if isinstance(each, dict) and (value := picked(each, path[cut + 1 :])) is not None:
                found += value if isinstance(value, list) and several else [value]
    if not found:
        return None
    return found if several or len(found) > 1 else found[0]


def text_of(value: Any) -> str | None:
    """A value as a field of a record has it, before quotes; None for NULL."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str) else exact_dumps(value)
