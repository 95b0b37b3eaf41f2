"""A JSON column widened into columns on the way out: more of them than a table of a database may have.

Each key becomes a column of text. A key that a row lacks, and JSON's null, are NULL; strings are their text, numbers
the very digits that the source had, nested values JSON. Key/value rows come as JSON, too: jsonb_object_agg makes it.

Objects without nested values are taken apart by Arrow's kernels, many rows at once; others one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from export_pipelines.errors import FormatError
from export_pipelines.formats.fields import Field, Kind
from export_pipelines.formats.texts import columns_of, joined, quoted, quoted_column
from export_pipelines.specs.format import PLAIN

Others = Literal["error", "drop", "column"]

_BATCH_BYTES = 1 << 23
_STYLES = ((', "', '": '), (',"', '":'))
"""What parts pairs, and a key from its value: as databases print it, and as compact JSON has it."""


class Widener:
    """Widens records of `count` fields, of which number `index` is JSON and is left out. The new fields come last.

    `keys` are those of the columns, in their order; `others` says what of keys that are not among them: `error`,
    `drop`, or `column`, which adds one more column, named by the prefix and `others`, with an object of them.
    """

    def __init__(
        self, count: int, index: int, keys: Sequence[str], prefix: str = "", *, others: Others = "error"
    ) -> None:
        import pyarrow as pa

        self._count, self._index, self._prefix, self._others = count, index, prefix, others
        self._keys = list(keys)
        self._place = {key: number for number, key in enumerate(self._keys)}
        self._known = pa.array(self._keys, pa.string())
        self._width = len(self._keys) + (others == "column")

    def fields(self, fields: Sequence[Field]) -> tuple[Field, ...]:
        """The fields of widened records."""
        rest = [replace(f, quoted=False) for number, f in enumerate(fields) if number != self._index]
        names = [self._prefix + key for key in self._keys]
        added = [Field(name, Kind.TEXT, "text") for name in names]
        if self._others == "column":
            added.append(Field(f"{self._prefix}others", Kind.JSON, "jsonb"))
        return (*rest, *added)

    def encode(self, records: list[bytes]) -> list[bytes]:
        """Records, widened. Memory: some times 8 MiB beside what goes in and comes out.

        Raises:
            FormatError: the column has something else than an object, or an object has a key that was not declared.
        """
        found: list[bytes] = []
        for batch in _batches(records):
            found += self._widened(columns_of(batch, self._count))
        return found

    def _widened(self, columns: list[Any]) -> list[bytes]:
        import pyarrow as pa
        from pyarrow import compute

        texts = columns.pop(self._index)
        lines = self._lines(texts)
        parts = [compute.fill_null(quoted_column(column, PLAIN), "") for column in columns]
        if self._width:
            parts.append(lines)
        rows = joined([*[part for each in parts for part in (each, ",")][:-1], "\n"])
        return list(compute.cast(rows, pa.large_binary()).to_pylist())

    def _lines(self, texts: Any) -> Any:
        """The new fields of each row, as CSV without a line end."""
        import pyarrow as pa
        from pyarrow import compute

        quick, clean = self._quick(texts)
        slow = compute.invert(clean)
        if not compute.any(slow).as_py():
            return quick
        done = [self._slow(text) for text in compute.filter(texts, slow).to_pylist()]
        return compute.replace_with_mask(quick, slow, pa.array(done, quick.type))

    # -- many rows at once

    def _quick(self, texts: Any) -> tuple[Any, Any]:
        """The lines of rows, and which of them are right: others are to be done one by one."""
        import numpy as np
        import pyarrow as pa
        from pyarrow import compute

        between, after_key = next((s for s in _STYLES if _occurs(texts, s[1])), _STYLES[0])
        inner, clean = _inner(texts)
        pieces = compute.split_pattern(inner, between)
        rows = compute.list_parent_indices(pieces)
        pairs = compute.split_pattern(compute.list_flatten(pieces), after_key, max_splits=1)
        whole = compute.equal(compute.list_value_length(pairs), 2)
        if not compute.all(whole).as_py():
            pairs = compute.if_else(whole, pairs, pa.scalar(["", "null"], pairs.type))
        keys, values = compute.list_element(pairs, 0), compute.list_element(pairs, 1)
        odd = compute.or_(compute.match_substring(keys, '"'), compute.match_substring(keys, "\\"))
        right = compute.and_(whole, compute.and_(_simple(values), compute.invert(odd)))
        places = compute.index_in(keys, self._known)
        if self._others != "drop":
            right = compute.and_(right, compute.is_valid(places))
        wrong = np.asarray(compute.filter(rows, compute.invert(right)))
        bad = np.zeros(len(texts), bool)
        bad[wrong] = True
        clean = compute.and_(clean, pa.array(~bad))
        return self._filled(len(texts), rows, places, _fields_of_values(values)), clean

    def _filled(self, count: int, rows: Any, places: Any, values: Any) -> Any:
        """Rows of fields, put in their places and joined; what has no value is empty."""
        import numpy as np
        import pyarrow as pa
        from pyarrow import compute

        nothing = len(values)
        which = np.full(count * self._width, nothing, np.int64)
        known = np.asarray(compute.is_valid(places))
        cells = np.asarray(rows).astype(np.int64) * self._width + np.asarray(compute.fill_null(places, 0))
        # Of a key that comes twice, the last counts: as jsonb has it.
        which[cells[known]] = np.flatnonzero(known)
        values = pa.concat_arrays([values, pa.array([""], values.type)])
        taken = compute.take(values, pa.array(which), boundscheck=False)
        offsets = pa.array(np.arange(0, count * self._width + 1, max(1, self._width), dtype=np.int32))
        if not self._width:
            return pa.array([""] * count, values.type)
        return compute.binary_join(pa.ListArray.from_arrays(offsets, taken), ",")

    # -- one by one

    def _slow(self, text: str) -> str:
        fields = [""] * self._width
        others: dict[str, str] = {}
        for key, raw in _pairs(text):
            place = self._place.get(key)
            if place is not None:
                fields[place] = _csv(raw)
            elif self._others == "column":
                others[key] = raw
            elif self._others == "error":
                raise FormatError(
                    f"a row has the key {key!r}, which is not among the keys to widen",
                    hint="add it to `keys`, or let `others` say what becomes of it",
                )
        if others:
            pairs = (f"{json.dumps(key, ensure_ascii=False)}: {raw}" for key, raw in others.items())
            fields[-1] = _csv_text("{" + ", ".join(pairs) + "}")
        return ",".join(fields)


def _batches(records: list[bytes]) -> Iterator[list[bytes]]:
    size, first = 0, 0
    for number, record in enumerate(records, start=1):
        size += len(record)
        if size >= _BATCH_BYTES:
            yield records[first:number]
            size, first = 0, number
    if first < len(records):
        yield records[first:]


def _occurs(texts: Any, sign: str) -> bool:
    from pyarrow import compute

    head = texts.slice(0, 10)
    return bool(compute.any(compute.match_substring(head, sign)).as_py())


def _inner(texts: Any) -> tuple[Any, Any]:
    """What is between `{"` and `}` of each object, null if that is nothing; and which texts are objects, or NULL."""
    import pyarrow as pa
    from pyarrow import compute

    empty = compute.or_kleene(compute.is_null(texts), compute.is_in(texts, pa.array(["{}", "null"], texts.type)))
    objects = compute.and_(compute.starts_with(texts, '{"'), compute.ends_with(texts, "}"))
    objects = compute.fill_null(objects, False)
    # Arrow cuts long texts byte by byte, at a tenth of the speed.
    wanted = zip(texts.to_pylist(), objects.to_pylist(), strict=True)
    inner = pa.array([text[2:-1] if known else None for text, known in wanted], texts.type)
    return inner, compute.or_(objects, empty)


def _simple(values: Any) -> Any:
    """Which values are certainly whole: scalars; strings whose last quote is one that ends them.

    A string was cut if what parts pairs stood at its end; then it lacks that quote. No quote stands within a string but
    behind a backslash. What begins with a bracket is nested.
    """
    from pyarrow import compute

    first = compute.starts_with(values, '"')
    long = compute.greater(compute.binary_length(values), 1)
    ends = compute.and_(compute.ends_with(values, '"'), compute.invert(compute.ends_with(values, '\\"')))
    string = compute.and_(first, compute.and_(long, ends))
    nested = compute.or_(compute.starts_with(values, "{"), compute.starts_with(values, "["))
    return compute.or_(string, compute.invert(compute.or_(first, nested)))


def _fields_of_values(values: Any) -> Any:
    """Values of JSON as fields of CSV."""
    import pyarrow as pa
    from pyarrow import compute

    string = compute.starts_with(values, '"')
    values = compute.if_else(compute.equal(values, "null"), "", values)
    if not compute.any(string).as_py():
        return compute.ascii_trim_whitespace(values)
    escaped = compute.and_(string, compute.match_substring(values, "\\"))
    texts = compute.filter(values, string)
    # One that was cut in two lacks its last quote, for which half a character would go: its row is done again.
    ended = compute.and_(compute.ends_with(texts, '"'), compute.greater(compute.binary_length(texts), 1))
    texts = compute.if_else(ended, texts, '""')
    found = compute.binary_slice(texts.cast(pa.binary()), 1, -1).cast(texts.type)
    if compute.any(escaped).as_py():
        marked = compute.filter(escaped, string)
        plain = [_unescaped(text) for text in compute.filter(texts, marked).to_pylist()]
        found = compute.replace_with_mask(found, marked, pa.array(plain, found.type))
    return compute.replace_with_mask(values, string, quoted_column(found, PLAIN))


def _unescaped(token: str) -> str:
    try:
        return str(json.loads(token))
    except ValueError:
        # Cut in two: its row is done again, one by one.
        return ""


_decoder = json.JSONDecoder()


def _pairs(text: str | None) -> Iterator[tuple[str, str]]:
    """Keys and values of an object, the values as they stand there."""
    if text is None or text.strip() == "null":
        return
    try:
        place = _after(text, 0, "{")
        while text[place] != "}":
            key, end = _decoder.raw_decode(text, place)
            start = _after(text, end, ":")
            end = _decoder.raw_decode(text, start)[1]
            yield key, text[start:end]
            place = _spaces(text, end)
            place = _after(text, place, ",") if text[place] == "," else place
    except (ValueError, IndexError) as error:
        raise FormatError("a value of the column to widen is not a JSON object", hint="check its query") from error


def _after(text: str, place: int, sign: str) -> int:
    place = _spaces(text, place)
    if text[place] != sign:
        raise ValueError(sign)
    return _spaces(text, place + 1)


def _spaces(text: str, place: int) -> int:
    while text[place] in " \t\r\n":
        place += 1
    return place


def _csv(raw: str) -> str:
    if raw == "null":
        return ""
    return _csv_text(json.loads(raw)) if raw[0] == '"' else _csv_text(raw) if raw[0] in "[{" else raw


def _csv_text(text: str) -> str:
    return quoted(text, _TEXT)


_TEXT = Field("", Kind.TEXT, "text")
