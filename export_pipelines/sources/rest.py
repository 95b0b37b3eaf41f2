"""Records of an API, page by page. Each page is a file, the reply as it came, unless all of them land as one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from export_pipelines.errors import RequestError, SourceError
from export_pipelines.sources.files import Download, Found, need
from export_pipelines.sources.http_client import Call, Client, shown_url
from export_pipelines.sources.sniffing import sniffed
from export_pipelines.specs.load_sources import PagingSpec, RestSource
from export_pipelines.specs.service import resolve

if TYPE_CHECKING:
    import httpx

_PAGE_BYTES = 64 << 20
_FIELD = re.compile(r"\{(\w+)\}")
_EXTENSIONS = {
    "csv": ".csv",
    "json": ".json",
    "jsonl": ".jsonl",
    "gml": ".gml",
    "excel": ".xlsx",
    "parquet": ".parquet",
}
_NAME = 300
"""Longest name of a page, in characters: a file of the store is named by it."""
_TYPES = {"text/csv": "csv", "application/x-ndjson": "jsonl", "application/jsonl": "jsonl", "application/xml": "gml"}

Values = Mapping[str, Any]
Count = Callable[[bytes], int]
"""How many records a page has."""


@dataclass
class Pages:
    """The pages of an API. `list` calls for a page, gives it a name, and `open` reads the one that was listed last."""

    client: Client
    call: Call
    paging: PagingSpec
    count: Count
    format: str = "auto"
    """Of the replies; `auto` by their content type."""
    repeats: Callable[[], Iterator[Values]] = field(default=lambda: iter([{}]))
    """Values that stand as `{name}` in the call; one call a set."""
    common: Values = field(default_factory=dict)
    """Values of all calls: those of the window."""
    prefix: str = ""
    """Before the names of the pages."""
    stem: str = "page"
    extension: str = ""
    """Of the names; by the format when empty."""
    with_end: bool = False
    """Whether the page without records, which is the end, is listed as well."""
    reply: bytes = field(default=b"", init=False)
    """The page that was listed last."""
    reply_format: str = field(default="", init=False)

    def list(self) -> Iterator[Found]:
        """All pages of all repeats.

        Raises:
            SourceError: the API goes in circles, does not page as it was said, has more pages than may be, or changes
                while it is read.
        """
        for values in self.repeats():
            call = filled(self.call, {**self.common, **values})
            label = "".join(f"{name}={value}/" for name, value in values.items())
            for number, (data, response) in enumerate(self._pages(call), 1):
                kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                self.reply_format = self.format if self.format != "auto" else _TYPES.get(kind, "json")
                self.reply = b"".join(sniffed(iter([data]), self.reply_format, kind, shown_url(call.url)))
                extension = self.extension or _EXTENSIONS[self.reply_format]
                name = f"{self.prefix}{label}{self.stem}-{number:06d}{extension}"
                yield Found(_printable(name), shown_url(str(response.url)))

    @contextmanager
    def open(self, found: Found, known: str) -> Iterator[Download | None]:
        """The page that was listed last."""
        yield Download(iter([self.reply]), "")

    @property
    def whole_name(self) -> str:
        """Name of all pages as one file."""
        return f"{self.prefix}{self.stem}-all{'.geojsonl' if self.extension == '.geojson' else '.jsonl'}"

    def _pages(self, call: Call) -> Iterator[tuple[bytes, httpx.Response]]:
        seen: set[str] = set()
        before = ""
        number, place = 0, self.paging.first
        total = _Total(self.paging.total, shown_url(call.url))
        current: Call | None = self._placed(call, place)
        while current is not None:
            if number >= self.paging.max_pages:
                raise SourceError(f"{shown_url(call.url)} has more than {number} pages", hint="see `max_pages`")
            data, response = self.client.read(current, min(self.client.options.max_bytes, _PAGE_BYTES))
            number += 1
            counted = self.paging.by in ("offset", "page")
            records = self.count(data) if counted or self.paging.total else 0
            total.page(data, records)
            if counted and not records and number > 1:
                # It may tell of an error instead: whoever takes the whole has to look.
                if self.with_end:
                    yield data, response
                break
            digest = hashlib.sha256(data).hexdigest()
            if counted and records and digest == before:
                raise SourceError(
                    f"{shown_url(call.url)} gives the same page again", hint=f"does it know {self.paging.parameter!r}?"
                )
            before = digest
            yield data, response
            place += records if self.paging.by == "offset" else 1
            current = self._next(call, data, response, records, place, seen)
        total.end()

    def _placed(self, call: Call, place: int) -> Call:
        """The call with the parameters of its page."""
        params = dict(call.params)
        if self.paging.size_parameter:
            params[self.paging.size_parameter] = str(self.paging.size)
        if self.paging.by in ("offset", "page"):
            params[self.paging.parameter] = str(place)
        return replace(call, params=params)

    def _next(
        self, call: Call, data: bytes, response: httpx.Response, records: int, place: int, seen: set[str]
    ) -> Call | None:
        match self.paging.by:
            case "none":
                return None
            case "offset" | "page":
                return self._placed(call, place) if records else None
        link = response.links.get("next", {}).get("url") if self.paging.by == "link" else None
        value = link or self._search(data, call)
        if value in (None, "", False):
            return None
        text = value if isinstance(value, str) else json.dumps(value)
        if text in seen:
            raise SourceError(f"{shown_url(call.url)} goes in circles: a page leads to an earlier one")
        seen.add(text)
        if self.paging.by == "link":
            return replace(call, url=self.client.checked(text, str(response.url)), params={})
        placed = self._placed(call, place)
        return replace(placed, params={**placed.params, self.paging.parameter: text})

    def _search(self, data: bytes, call: Call) -> Any:
        return _searched(self.paging.next, data, shown_url(call.url))


@dataclass
class _Total:
    """What replies say of how many records there are in all."""

    path: str | None
    url: str
    said: int | None = None
    records: int = 0

    def page(self, data: bytes, records: int) -> None:
        """Raises SourceError if it is another number than before, or none at all."""
        if self.path is None:
            return
        self.records += records
        found = _searched(self.path, data, self.url)
        # Behind the end, some say nothing.
        if found is None and self.said is not None:
            return
        if isinstance(found, bool) or not str(found).isdecimal():
            raise SourceError(f"{self.url} has no number at {self.path!r}", hint="correct `paging: {total: …}`")
        if self.said not in (None, int(found)):
            raise self._changed(f"it had {self.said} records, and then {found}")
        self.said = int(found)

    def end(self) -> None:
        """All pages were read. Raises SourceError if they had another number of records."""
        if self.said is not None and self.said != self.records:
            raise self._changed(f"it says {self.said} records, and its pages have {self.records}")

    def _changed(self, how: str) -> SourceError:
        return SourceError(f"{self.url} changed while it was read: {how}", hint="run it again", transient=True)


def _searched(path: str, data: bytes, url: str) -> Any:
    """What a JMESPath finds in a page."""
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        return jmespath.search(path, json.loads(data))
    except JMESPathError as error:
        raise RequestError(f"{path!r} cannot be used: {error}", hint="see jmespath.org") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{url} gives a page that is no JSON: {error}", transient=True) from error


def rest_pages(
    spec: RestSource,
    *,
    records: str,
    file_format: str,
    repeats: Callable[[], Iterator[Values]],
    common: Values,
    prefix: str = "",
) -> Pages:
    """The pages of a `rest` source. `records` is the JMESPath to the records of a page."""
    url = need(resolve(spec.url), "the URL")
    params = {name: _text(value) for name, value in spec.params.items()}
    body = spec.body if spec.method == "POST" else None
    call = Call(
        url,
        spec.method,
        params,
        json=body if isinstance(body, dict) else None,
        content=body if isinstance(body, str) else None,
    )
    return Pages(Client(spec, url), call, spec.paging, json_count(records), file_format, repeats, common, prefix)


def json_count(records: str) -> Count:
    """Counts what a JMESPath finds in a page."""

    def count(data: bytes) -> int:
        import jmespath
        from jmespath.exceptions import JMESPathError

        try:
            found = jmespath.search(records, json.loads(data))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"a page is no JSON: {error}", transient=True) from error
        except JMESPathError as error:
            raise RequestError(f"{records!r} cannot be used: {error}", hint="see jmespath.org") from error
        if found is not None and not isinstance(found, list):
            raise SourceError(
                f"a page has no list at {records!r}", hint="set `file: {records: …}` to count its records"
            )
        return len(found or ())

    return count


def filled(call: Call, values: Values) -> Call:
    """A call with the values in their places. In a URL they are quoted, and no value makes another host of it.

    Raises:
        RequestError: a `{name}` has no value.
    """
    parts = urlsplit(call.url)
    if _FIELD.search(parts.netloc):
        raise RequestError("the host of a URL cannot be filled in", hint="write the whole host in the definition")
    query = urlencode([(name, _fill(value, values)) for name, value in parse_qsl(parts.query, True)])
    path = _FIELD.sub(lambda found: quote(_value(found[1], values), safe=""), parts.path)
    return Call(
        urlunsplit((parts.scheme, parts.netloc, path, query if "{" in parts.query else parts.query, "")),
        call.method,
        {name: _fill(value, values) for name, value in call.params.items()},
        call.headers,
        _fill_json(call.json, values),
        # A text has braces of its own.
        None if call.content is None else _FIELD.sub(lambda f: _text(values.get(f[1], f[0])), call.content),
    )


def _fill(text: str, values: Values) -> str:
    return _FIELD.sub(lambda found: _value(found[1], values), text)


def _fill_json(value: Any, values: Values) -> Any:
    if isinstance(value, dict):
        return {key: _fill_json(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [_fill_json(each, values) for each in value]
    return _fill(value, values) if isinstance(value, str) else value


def _value(name: str, values: Values) -> str:
    if name not in values:
        raise RequestError(f"{{{name}}} has no value", hint=f"known are {', '.join(sorted(values)) or 'none'}")
    return _text(values[name])


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def _printable(name: str) -> str:
    """A name that can be shown. Two that become the same by that are told apart: a page must not pass for another."""
    shown = "".join(sign if sign.isprintable() else "_" for sign in name)
    if shown == name and len(name) <= _NAME:
        return name
    stem, dot, extension = shown.rpartition(".")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{stem[: _NAME - 60]}-{digest[:16]}{dot}{extension}"
