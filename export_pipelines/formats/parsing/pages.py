"""Pages of an API in one file: JSON Lines, each line a reply as it came, but for its line breaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jmespath.exceptions import JMESPathError

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.formats.parsing.base import Parsed
from export_pipelines.formats.parsing.json import NAMES, feature, physical_lines, place_of, records_of
from export_pipelines.formats.parsing.json_text import loads
from export_pipelines.formats.parsing.records import Numbered, compiled
from export_pipelines.formats.parsing.unpacking import Member
from export_pipelines.specs.load import FileSpec

_MARK = b"\xef\xbb\xbf"
_LINE_BYTES = 64 << 20


def page_line(reply: bytes) -> bytes:
    """A reply as a line. JSON has line breaks only between values, where a space says the same."""
    return reply.removeprefix(_MARK).replace(b"\n", b" ") + b"\n"


def as_pages(spec: FileSpec) -> FileSpec:
    """How a file of pages is read, whatever the definition says of a page by itself."""
    size = max(spec.max_line_bytes, _LINE_BYTES + 1)
    return spec.model_copy(update={"compression": "auto", "encoding": "utf-8", "max_line_bytes": size})


def parse_pages(spec: FileSpec, columns: Sequence[str] | None, member: Member) -> Parsed:
    """See `parsing.parse`. The line of a record is the number of its page."""

    def read() -> Numbered:
        pages = PageRecords(spec.records, member.name)
        for number, line in physical_lines(spec, member):
            yield from ((number, record) for record in pages.of(pages.value(line, f"page {number}")))

    return records_of(spec, columns, read)


class PageRecords:
    """Finds the records of pages, as they are found in a document."""

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._features = path == "@" and name.lower().endswith(".geojsonl")
        self._search = None if path == "@" or NAMES.fullmatch(path) else compiled(path)
        self._names = ["features"] if self._features else [] if path == "@" else path.partition("[")[0].split(".")

    def value(self, page: bytes, where: str) -> Any:
        """What a page has where its records should be: a list, one object, or null.

        Raises:
            IntegrityError: it is no JSON in UTF-8, or has nothing there.
            RequestError: the path cannot be used.
        """
        try:
            value = loads(page.decode())
        except RecursionError as error:
            raise IntegrityError(f"{where} is nested too deep") from error
        except ValueError as error:
            raise IntegrityError(f"{where} is no JSON: {place_of(error)}") from error
        found = self._searched(value) if self._search else self._named(value)
        # A search finds null as well where there is nothing at all.
        if isinstance(found, list | dict) or (found is None and self._names and not self._search):
            return found
        raise IntegrityError(f"{where} has no records at {self._path!r}", hint="correct `file: {records: …}`")

    def of(self, value: Any) -> Iterator[Any]:
        """The records of such a value."""
        records = value if isinstance(value, list) else [] if value is None else [value]
        yield from map(feature, records) if self._features else records

    def _named(self, value: Any) -> Any:
        for name in self._names:
            if not isinstance(value, dict) or name not in value:
                return ""
            value = value[name]
        return value

    def _searched(self, value: Any) -> Any:
        assert self._search is not None
        try:
            return self._search(value)
        except JMESPathError as error:
            raise RequestError(f"{self._path!r} cannot be used: {error}", hint="see jmespath.org") from error
