"""Features of GML as records: simple values as text, geometries as the XML that they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.formats.parsing.base import Parsed
from export_pipelines.formats.parsing.records import Numbered, batches_of, names_of
from export_pipelines.formats.parsing.unpacking import Member
from export_pipelines.specs.load import FileSpec

_DEPTH = 200
_SEPARATOR = "\n"
_ONE = ("member", "featureMember")
_MANY = ("featureMembers", "members")
_BOUNDS = ("boundedBy",)


def parse_gml(spec: FileSpec, columns: Sequence[str] | None, member: Member) -> Parsed:
    """See `parsing.parse`. Columns are the local names of a feature's properties, and `gml_id`. A property with
    elements in it, such as a geometry, is their XML."""
    if columns is not None:
        return Parsed(tuple(columns), batches_of(_records(spec, member), columns, paths=True))
    names = names_of((record for _, record in _features(spec, member)), spec.max_columns)
    return Parsed(names, batches_of(_records(spec, member), names, paths=False))


def _records(spec: FileSpec, member: Member) -> Numbered:
    yield from _features(spec, member)


def _features(spec: FileSpec, member: Member) -> Iterator[tuple[int, dict[str, Any]]]:
    builder = _Builder(spec.max_line_bytes)
    parser = builder.parser
    try:
        for piece in member.open():
            # Small slices, so that a feature is given as soon as it is there.
            for start in range(0, len(piece), 1 << 16):
                parser.Parse(piece[start : start + (1 << 16)], False)
                yield from builder.taken()
        parser.Parse(b"", True)
        yield from builder.taken()
    except expat.ExpatError as error:
        raise IntegrityError(f"{member.name} is no XML: {error}") from error
    if not builder.collection:
        raise IntegrityError(
            f"{member.name} is XML without features: its root is {builder.root!r}",
            hint="a server may tell an error in this way; look at the landed file",
        )


class _Builder:
    """Puts features together from what the parser of XML tells. Entities and DTDs are refused: no bombs, no files."""

    def __init__(self, limit: int) -> None:
        self.parser = expat.ParserCreate(namespace_separator=_SEPARATOR)
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.root = ""
        self.collection = False
        self._limit = limit
        self._path: list[str] = []
        self._found: list[tuple[int, dict[str, Any]]] = []
        self._count = 0
        self._feature: dict[str, Any] | None = None
        self._depth = 0
        """How deep within the path the feature is."""
        self._parts: list[str] = []
        self._nested = False
        self._size = 0

    def taken(self) -> list[tuple[int, dict[str, Any]]]:
        """The features that are complete by now."""
        found, self._found = self._found, []
        return found

    def _refuse(self, *_: Any) -> None:
        raise IntegrityError("XML with a DTD is not read", hint="GML has none")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        local = name.rpartition(_SEPARATOR)[2]
        self._path.append(local)
        if len(self._path) > _DEPTH:
            raise IntegrityError(f"XML is nested more than {_DEPTH} deep")
        if len(self._path) == 1:
            self.root = local
            self.collection = local.endswith("FeatureCollection") or local == "GetFeatureResponse"
        if self._feature is None:
            if len(self._path) > 1 and self._path[-2] in (*_ONE, *_MANY) and self.collection:
                self._begin(attributes)
        elif len(self._path) == self._depth + 1:
            self._parts, self._nested = [], False
        else:
            self._nested = True
            uri = name.rpartition(_SEPARATOR)[0]
            # Each carries its namespace, so that it means the same outside of its document.
            own = f' xmlns="{escape(uri)}"' if uri else ""
            texts = "".join(f" {key.rpartition(_SEPARATOR)[2]}={quoteattr(value)}" for key, value in attributes.items())
            self._add(f"<{local}{own if len(self._path) == self._depth + 2 else ''}{texts}>")

    def _begin(self, attributes: dict[str, str]) -> None:
        self._depth = len(self._path)
        self._size = 0
        found = {key.rpartition(_SEPARATOR)[2]: value for key, value in attributes.items()}
        identity = found.get("id") or found.get("fid")
        self._feature = {"gml_id": identity} if identity else {}

    def _end(self, name: str) -> None:
        depth = len(self._path)
        local = self._path.pop()
        if self._feature is None:
            return
        if depth == self._depth:
            self._count += 1
            self._found.append((self._count, self._feature))
            self._feature = None
        elif depth == self._depth + 1:
            if local not in _BOUNDS:
                self._set(local, "".join(self._parts))
        else:
            self._add(f"</{local}>")

    def _set(self, name: str, text: str) -> None:
        assert self._feature is not None
        text = text.strip()
        if name in self._feature:
            # Several values of a property: a list.
            before = self._feature[name]
            self._feature[name] = [*before, text] if isinstance(before, list) else [before, text]
        else:
            self._feature[name] = text or None

    def _text(self, text: str) -> None:
        if self._feature is not None and len(self._path) > self._depth:
            self._add(escape(text) if len(self._path) > self._depth + 1 else text)

    def _add(self, text: str) -> None:
        self._size += len(text)
        if self._size > self._limit:
            raise RequestError(f"feature {self._count + 1} is longer than {self._limit}", hint="set `max_line_bytes`")
        self._parts.append(text)
