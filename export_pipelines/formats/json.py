"""JSON: one array of objects, or an object a line, with numbers in the very digits of the source.

Booleans, numbers and NULL are JSON's own, JSON columns are embedded, all other values are strings. Each object has a
line to itself, so line ends between the tokens of an embedded value become spaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from export_pipelines.errors import FormatError, IntegrityError
from export_pipelines.formats.batching import BatchWriter
from export_pipelines.formats.fields import NUMBERS, Field, Kind
from export_pipelines.formats.texts import bytes_of, first_where, joined, quoted
from export_pipelines.specs.format import FormatSpec

_NUMBER = r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$"
# Numbers of a server are JSON's, but for NaN and the infinities.
_NO_NUMBER = "[NI]"
_TO_ESCAPE = r'["\\\x00-\x1f]'
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_RARE = [chr(code) for code in range(32) if chr(code) not in _ESCAPES]


class JsonWriter(BatchWriter):
    """See `formats.writers.FormatWriter`."""

    def __init__(self, spec: FormatSpec, fields: Sequence[Field]) -> None:
        super().__init__(fields)
        self._array = spec.type == "json"
        self._begun = False
        self._keys = [json.dumps(field.name, ensure_ascii=False) + ":" for field in fields]
        self._texts = [as_string(spec, field) for field in fields]

    def begin(self) -> bytes:
        return b"[" if self._array else b""

    def take(self, columns: list[Any]) -> bytes:
        parts: list[Any] = [",\n{" if self._array else "{"]
        for key, column, field, text in zip(self._keys, columns, self.fields, self._texts, strict=True):
            parts += [key, self._value(column, field, text), ","]
        parts[-1] = "}" if self._array else "}\n"
        data = bytes_of(joined(parts, null="null"))
        if self._array and not self._begun:
            self._begun = True
            return data[1:]
        return data

    def end(self) -> Iterator[bytes]:
        yield b"\n]\n" if self._array else b""

    def _value(self, column: Any, field: Field, text: bool) -> Any:
        if text:
            return strings(column)
        if field.kind in NUMBERS:
            return _numbers(column, field)
        if field.kind is Kind.BOOLEAN:
            return booleans(column, field)
        return self._embedded(column, field) if field.kind is Kind.JSON else strings(column)

    def _embedded(self, column: Any, field: Field) -> Any:
        from pyarrow import compute

        if compute.any(compute.match_substring_regex(column, r"^\s*null\s*$")).as_py():
            raise FormatError(
                f"column {field.name!r} has a `null` of JSON, which could not be told from NULL",
                hint=f"declare `conversions: {{{field.name}: text}}`, which writes its values as strings",
            )
        if not compute.any(compute.match_substring_regex(column, r"[\r\n]")).as_py():
            return column
        self.exact = False
        return compute.replace_substring_regex(column, r"[\r\n]", " ")


def as_string(spec: FormatSpec, field: Field) -> bool:
    """Whether a column is written as strings by a conversion. `"*"` is of numbers that may be none of JSON's."""
    if field.kind in (Kind.FLOAT, Kind.NUMERIC) and "*" in spec.conversions and field.name not in spec.conversions:
        return spec.conversions["*"] == "text"
    return spec.conversions.get(field.name) == "text"


def strings(column: Any) -> Any:
    """Texts as strings of JSON."""
    from pyarrow import compute

    if compute.any(compute.match_substring_regex(column, _TO_ESCAPE)).as_py():
        rare = compute.any(compute.match_substring_regex(column, r"[\x00-\x07\x0b\x0e-\x1f]")).as_py()
        escapes = _ESCAPES | {sign: f"\\u{ord(sign):04x}" for sign in _RARE if rare}
        for sign, escape in escapes.items():
            column = compute.replace_substring(column, sign, escape)
    return joined(['"', column, '"'])


def booleans(column: Any, field: Field) -> Any:
    """`true` and `false` of the source's spelling."""
    import pyarrow as pa
    from pyarrow import compute

    true = compute.is_in(column, pa.array(["t", "true"], column.type))
    known = compute.or_(true, compute.is_in(column, pa.array(["f", "false"], column.type)))
    wrong = compute.and_(compute.invert(known), compute.is_valid(column))
    if compute.any(wrong).as_py():
        raise FormatError(
            f"column {field.name!r} has {first_where(column, wrong)!r}, which is neither true nor false",
            hint=f"declare `conversions: {{{field.name}: text}}`",
        )
    return compute.if_else(compute.is_valid(column), compute.if_else(true, "true", "false"), None)


def _numbers(column: Any, field: Field) -> Any:
    from pyarrow import compute

    if field.type.startswith("year"):
        return compute.replace_substring_regex(column, "^0+([0-9])", r"\1")
    if field.engine == "opensearch":
        wrong = compute.invert(compute.match_substring_regex(column, _NUMBER))
    elif field.kind is Kind.INTEGER:
        return column
    else:
        wrong = compute.match_substring_regex(column, _NO_NUMBER)
    if compute.any(wrong).as_py():
        raise FormatError(
            f"column {field.name!r} has {first_where(column, wrong)!r}, which is no number of JSON",
            hint=f"declare `conversions: {{{field.name}: text}}`, which writes the column as strings",
        )
    return column


# -- reading

# Without going back: of a long text each escape would take memory.
_TOKEN = r'("[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"|[^",{}\[\]\x00-\x20]+)'


class LineReader:
    """Reads objects that JsonWriter wrote, and gives their records."""

    def __init__(self, spec: FormatSpec, fields: Sequence[Field]) -> None:
        self._fields = fields
        self._keys = [json.dumps(field.name, ensure_ascii=False) + ":" for field in fields]
        self._embedded = [field.kind is Kind.JSON and not as_string(spec, field) for field in fields]
        pattern = r"\{" + ",".join(re.escape(key) + _TOKEN for key in self._keys) + r"\}"
        self._whole = None if any(self._embedded) else re.compile(pattern)
        self._token = re.compile(_TOKEN)
        self._decoder = json.JSONDecoder()

    def record(self, line: str) -> bytes:
        """Raises IntegrityError: it is no such object."""
        tokens = self._split(line)
        if tokens is None:
            raise IntegrityError("a line of the JSON is not an object with the columns of the export, in their order")
        values = map(_field, tokens, self._fields, self._embedded)
        if len(tokens) == 1 and tokens[0] == '"\\\\."':
            # Alone in a line, COPY would take it for the end of the data.
            return b'"\\."\n'
        return (",".join(values) + "\n").encode()

    def _split(self, line: str) -> Sequence[str] | None:
        if self._whole is not None:
            found = self._whole.fullmatch(line)
            return found.groups() if found else None
        place, tokens = 0, []
        for number, (key, embedded) in enumerate(zip(self._keys, self._embedded, strict=True)):
            head = ("," if number else "{") + key
            start = place + len(head)
            place = self._end(line, start, embedded) if line.startswith(head, place) else -1
            if place < 0:
                return None
            tokens.append(line[start:place])
        return tokens if line[place:] == "}" else None

    def _end(self, line: str, start: int, embedded: bool) -> int:
        if not embedded:
            found = self._token.match(line, start)
            return found.end() if found else -1
        try:
            end = self._decoder.raw_decode(line, _after_spaces(line, start))[1]
        except ValueError:
            return -1
        return _after_spaces(line, end)


def _after_spaces(line: str, place: int) -> int:
    while line[place : place + 1].isspace():
        place += 1
    return place


def _field(token: str, field: Field, embedded: bool) -> str:
    """The field of the record that a value stands for."""
    if token == "null":
        return ""
    if embedded:
        return quoted(token, field)
    if token[0] == '"':
        return quoted(str(json.loads(token)) if "\\" in token else token[1:-1], field)
    if field.kind is Kind.BOOLEAN:
        return token if field.engine == "opensearch" else token[0]
    return token.zfill(4) if field.type.startswith("year") else token


def lines_of(raw: Iterable[bytes], *, array: bool) -> Iterator[list[str]]:
    """The lines with objects, without what parts them.

    Raises:
        IntegrityError: it ends in the middle, or is not in UTF-8.
    """
    begun: list[bytes] = []
    first, last = True, b""
    for piece in raw:
        if b"\n" not in piece:
            begun.append(piece)
            continue
        *found, rest = b"".join([*begun, piece]).split(b"\n")
        begun = [rest]
        if array:
            if first and found:
                first = False
                if found.pop(0) != b"[":
                    raise IntegrityError("the JSON does not begin with an array")
            # The line before the last is known by what follows it.
            found, last = [last, *found] if last else found, b""
            if found:
                last = found.pop()
            found = [line.removesuffix(b",") for line in found]
        yield _decoded(found)
    if b"".join(begun) or (array and last != b"]"):
        raise IntegrityError("the JSON ends in the middle")


def _decoded(lines: list[bytes]) -> list[str]:
    try:
        return [line.decode() for line in lines]
    except UnicodeDecodeError as error:
        raise IntegrityError("the JSON is not in UTF-8") from error
