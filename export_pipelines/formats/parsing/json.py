"""JSON and JSON Lines as records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.formats.parsing.base import BadRecord, Parsed, shown
from export_pipelines.formats.parsing.decoding import utf8
from export_pipelines.formats.parsing.json_text import loads
from export_pipelines.formats.parsing.records import Numbered, batches_of, compiled, names_of
from export_pipelines.formats.parsing.unpacking import Member
from export_pipelines.specs.load import FileSpec

WHOLE_BYTES = 64 << 20
"""Of a document that has to be in memory: one whose records are found by more than names."""

_DEEP = 10_000
_HALF = len(r"\ud800")
_HALF_PAIR = re.compile(
    rb"(?<!\\)\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|[c-fC-F][0-9a-fA-F]{2}(?<!\\u[dD][89abAB]..\\u[dD]...))"
)
NAMES = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:\[\*?\])?", re.ASCII)
"""Paths of names alone."""


def parse_json(spec: FileSpec, columns: Sequence[str] | None, member: Member) -> Parsed:
    """See `parsing.parse`. Records are streamed where `records` is made of names alone, such as `data.items`."""
    return records_of(spec, columns, lambda: _numbered(_Document(spec, member).records()))


def parse_jsonl(spec: FileSpec, columns: Sequence[str] | None, member: Member) -> Parsed:
    """See `parsing.parse`. Each line is a record, or something in which `records` finds one or several."""
    return records_of(spec, columns, lambda: _lines(spec, member))


def records_of(spec: FileSpec, columns: Sequence[str] | None, read: Callable[[], Numbered]) -> Parsed:
    """Records that are objects, which `read` gives as often as it is called."""
    if columns is not None:
        return Parsed(tuple(columns), batches_of(read(), columns, paths=True))
    good = (each[1] for each in read() if not isinstance(each, BadRecord))
    names = names_of(good, spec.max_columns)
    return Parsed(names, batches_of(read(), names, paths=False))


def _numbered(records: Iterator[Any]) -> Numbered:
    yield from zip(count(1), records)


class _Counting:
    """Gives a parser its bytes, as long as no record is longer than may be."""

    def __init__(self, pieces: Iterator[bytes], limit: int) -> None:
        self._pieces = pieces
        self._limit = limit
        self._since = 0
        self._rest = b""
        self._tail = b""
        self._depth = 0
        self.records = 0

    def read(self, size: int) -> bytes:
        if not size:
            return b""
        if not self._rest:
            self._rest = next(self._pieces, b"")
        data, self._rest = self._rest[:size], self._rest[size:]
        self._since += len(data)
        self._check_depth(data)
        self._check_pairs(data)
        if self._since > self._limit + size:
            raise RequestError(
                f"record {self.records + 1} is longer than {self._limit} bytes", hint="set `max_line_bytes`"
            )
        return data

    def _check_depth(self, data: bytes) -> None:
        """The parser takes time by the square of how deep values are nested. Brackets in texts count, too."""
        opened = data.count(b"[") + data.count(b"{")
        deepest = self._depth + (_deepest(data) if opened > _DEEP // 4 else opened)
        self._depth += opened - data.count(b"]") - data.count(b"}")
        if deepest > _DEEP:
            raise IntegrityError(f"record {self.records + 1} is nested too deep")

    def _check_pairs(self, data: bytes) -> None:
        """The parser makes a question mark of half of a surrogate pair, and tells nobody."""
        window, before = self._tail + data, len(self._tail)
        self._tail = window[-4 * _HALF :]
        if b"\\ud" not in window.lower():
            return
        for match in _HALF_PAIR.finditer(window):
            # At the edges the other half may be out of sight; each is looked at where it is not.
            seen = match.start() >= _HALF or not before
            if seen and (match.end() + _HALF <= len(window) or not data):
                raise IntegrityError(f"record {self.records + 1} or one after it has half of a surrogate pair")

    def taken(self) -> None:
        """A record is through."""
        self.records += 1
        self._since = self._depth = 0


def _deepest(data: bytes) -> int:
    """How deep brackets are nested at most, from the beginning of some bytes."""
    import numpy

    signs = numpy.frombuffer(data, numpy.uint8)
    steps = ((signs == ord("[")) | (signs == ord("{"))).astype(numpy.int32)
    steps -= (signs == ord("]")) | (signs == ord("}"))
    return int(steps.cumsum().max(initial=0))


class _Document:
    """One JSON text."""

    def __init__(self, spec: FileSpec, member: Member) -> None:
        self._spec = spec
        self._member = member
        self._features = spec.records == "@" and member.name.lower().endswith(".geojson")

    def records(self) -> Iterator[Any]:
        """Raises IntegrityError for what is no JSON, or has no records at their place."""
        if self._features:
            yield from map(feature, self._streamed("features"))
        elif self._spec.records == "@":
            yield from self._top()
        elif NAMES.fullmatch(self._spec.records):
            yield from self._streamed(self._spec.records.partition("[")[0])
        else:
            yield from self._found()

    def _pieces(self) -> Iterator[bytes]:
        return utf8(self._member.open(), self._spec.encoding)

    def _top(self) -> Iterator[Any]:
        """The elements of a list, or the one object."""
        first = self._first_sign()
        if first == b"[":
            yield from self._items("item")
        elif first == b"{":
            yield from self._items("")
        else:
            # Nothing, a text, a number: told by the parser that knows where.
            self._whole()
            raise IntegrityError(f"{self._member.name} is JSON, and neither a list nor an object")

    def _first_sign(self) -> bytes:
        for piece in self._pieces():
            if stripped := piece.lstrip(b" \t\r\n"):
                return stripped[:1]
        return b""

    def _streamed(self, path: str) -> Iterator[Any]:
        """The elements of the list at a path of names; a single object there is one record."""
        kind = self._kind_at(path)
        if kind == "start_array":
            yield from self._items(f"{path}.item")
        elif kind == "start_map":
            yield from self._items(path)
        elif kind != "null":
            raise IntegrityError(
                f"{self._member.name} has no list at {path!r}",
                hint="correct `records`, or look at the landed file",
            )

    def _kind_at(self, path: str) -> str:
        import ijson

        source = _Counting(self._pieces(), 1 << 62)
        with self._explained(source):
            for prefix, event, _ in ijson.parse(source, use_float=False):
                if prefix == path and event != "map_key":
                    return str(event)
        return ""

    def _items(self, prefix: str) -> Iterator[Any]:
        import ijson

        source = _Counting(self._pieces(), self._spec.max_line_bytes)
        with self._explained(source):
            for item in ijson.items(source, prefix, use_float=False):
                source.taken()
                yield item

    def _found(self) -> Iterator[Any]:
        found = compiled(self._spec.records)(self._whole())
        yield from found if isinstance(found, list) else [] if found is None else [found]

    def _whole(self) -> Any:
        data = bytearray()
        for piece in self._pieces():
            data += piece
            if len(data) > WHOLE_BYTES:
                raise RequestError(
                    f"{self._member.name} is too large to look for {self._spec.records!r} in it",
                    hint="a path of names alone (`data.items`) is read as a stream",
                )
        try:
            return loads(bytes(data).decode())
        except RecursionError as error:
            raise IntegrityError(f"{self._member.name} is nested too deep") from error
        except ValueError as error:
            raise IntegrityError(f"{self._member.name} is no JSON: {place_of(error)}") from error

    def _explained(self, source: _Counting) -> _Explained:
        return _Explained(self, source)

    def explain(self, source: _Counting, error: Exception) -> IntegrityError:
        """The streaming parser does not know the place of an error: a small document is read again by one that does."""
        size = 0
        for piece in self._pieces():
            size += len(piece)
            if size > WHOLE_BYTES:
                break
        else:
            try:
                self._whole()
            except IntegrityError as better:
                return better
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        return IntegrityError(f"{self._member.name} is no JSON, after {source.records} records: {reason}")


class _Explained:
    """Turns the errors of ijson into ours."""

    def __init__(self, document: _Document, source: _Counting) -> None:
        self._document, self._source = document, source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        import ijson

        if isinstance(error, ijson.JSONError | ValueError | RecursionError):
            raise self._document.explain(self._source, error) from error


def feature(item: Any) -> Any:
    """A feature of GeoJSON as one flat record: its properties, `id` and `geometry`."""
    if not isinstance(item, dict) or not isinstance(item.get("properties") or {}, dict):
        return item
    identity = {"id": item["id"]} if "id" in item else {}
    return {**identity, **(item.get("properties") or {}), "geometry": item.get("geometry")}


def place_of(error: ValueError) -> str:
    """What is wrong with JSON, and where."""
    where = f"line {error.lineno}, column {error.colno}: " if isinstance(error, json.JSONDecodeError) else ""
    return where + str(getattr(error, "msg", error))


# JSON Lines


def _lines(spec: FileSpec, member: Member) -> Numbered:
    search = None if spec.records == "@" else compiled(spec.records)
    for number, line in physical_lines(spec, member):
        if not line.strip():
            continue
        try:
            value = loads(line.decode())
        except UnicodeDecodeError as error:
            yield BadRecord(number, f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8", shown(line))
            continue
        except RecursionError:
            yield BadRecord(number, "it is nested too deep", shown(line))
            continue
        except ValueError as error:
            yield BadRecord(number, f"it is no JSON: {place_of(error).removeprefix('line 1, ')}", shown(line))
            continue
        found = search(value) if search else value
        for record in found if search and isinstance(found, list) else [] if search and found is None else [found]:
            yield number, record


def physical_lines(spec: FileSpec, member: Member) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, without their ends. Raises RequestError for one that is too long."""
    rest: list[bytes] = []
    size = 0
    numbers = count(1)
    for piece in utf8(member.open(), spec.encoding):
        *lines, last = piece.split(b"\n")
        for line in lines:
            yield next(numbers), b"".join([*rest, line])
            rest, size = [], 0
        rest.append(last)
        size += len(last)
        if size > spec.max_line_bytes:
            raise RequestError(
                f"line {next(numbers)} is longer than {spec.max_line_bytes} bytes", hint="set `max_line_bytes`"
            )
    if size:
        yield next(numbers), b"".join(rest)
