"""Records that are objects: their values found by names or JMESPath."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError

from export_pipelines.errors import RequestError
from export_pipelines.formats.parsing.base import BadRecord, Batches, Collector, encode, shown, too_many_columns
from export_pipelines.formats.parsing.json_text import dumps, text_of

PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Numbered = Iterator[tuple[int, Any] | BadRecord]
"""Records with their numbers or lines."""


def compiled(path: str) -> Callable[[Any], Any]:
    """A JMESPath. Raises RequestError."""
    try:
        expression = jmespath.compile(path)
    except JMESPathError as error:
        raise RequestError(f"{path!r} is no JMESPath: {str(error).splitlines()[0]}", hint="see jmespath.org") from error

    def search(value: Any) -> Any:
        return expression.search(value)

    return search


def getter(name: str) -> Callable[[dict[str, Any]], Any]:
    """Finds a column in a record: a key of that very name first, else what the JMESPath finds."""
    if PLAIN_NAME.fullmatch(name):
        return lambda record: record.get(name)
    try:
        search: Callable[[Any], Any] | None = compiled(name)
    except RequestError:
        # `Average price` is a name, and no path.
        search = None
    return lambda record: record[name] if name in record else search(record) if search else None


def names_of(records: Iterable[Any], limit: int) -> tuple[str, ...]:
    """The keys of all records, in the order in which they appear. Raises RequestError if there are too many."""
    names: dict[str, None] = {}
    known = 0
    for record in records:
        if isinstance(record, dict):
            names.update(dict.fromkeys(record))
        if len(names) > known:
            known = len(names)
            if known > limit:
                raise too_many_columns(limit)
    return tuple(name for name in names if name and "\0" not in name)


def batches_of(records: Numbered, names: Sequence[str], *, paths: bool) -> Batches:
    """The records as CSV. With `paths` names may be JMESPaths; else they are keys."""
    gets = [getter(name) if paths else (lambda record, key=name: record.get(key)) for name in names]
    collected = Collector()
    for each in records:
        if isinstance(each, BadRecord):
            bad: BadRecord | None = each
        else:
            bad = _take(collected, *each, gets)
        if bad:
            yield from collected.batches()
            yield bad
        elif collected.full:
            yield from collected.batches()
    yield from collected.batches()


def _take(collected: Collector, line: int, record: Any, gets: Sequence[Callable[[Any], Any]]) -> BadRecord | None:
    if not isinstance(record, dict):
        return BadRecord(line, f"a record must be an object, and this is {_kind(record)}", _shown(record))
    try:
        collected.add(encode([text_of(get(record)) for get in gets]), line)
    except RecursionError:
        return BadRecord(line, "it is nested too deep", "")
    except UnicodeEncodeError:
        return BadRecord(line, "a text is not valid Unicode (half of a surrogate pair)", ascii(record)[:2000])
    except (ValueError, JMESPathError) as error:
        return BadRecord(line, str(error).splitlines()[0], _shown(record))
    return None


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds: list[tuple[type, str]] = [(bool, "a truth value"), (list, "a list"), (str, "a text")]
    return next((name for kind, name in kinds if isinstance(value, kind)), "a number")


def _shown(record: Any) -> str:
    try:
        return shown(dumps(record))
    except (ValueError, RecursionError):
        return shown(repr(record)[:2000])
