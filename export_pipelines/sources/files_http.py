"""Files that an index over HTTP lists, or one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urlsplit

from export_pipelines.errors import RequestError, SourceError
from export_pipelines.sources.files import Download, Found, checked_name, matches, need
from export_pipelines.sources.http_client import Call, Client, shown_url
from export_pipelines.sources.sniffing import sniffed
from export_pipelines.specs.load_sources import HttpSource
from export_pipelines.specs.service import resolve

_INDEX_BYTES = 64 << 20


@dataclass
class HttpFiles:
    """Files of an `http` source. `expect` tells the format of a file by its name, empty if it does not know."""

    spec: HttpSource
    client: Client
    expect: Callable[[str], str]
    _urls: dict[str, str] = field(default_factory=dict)
    """Whole URLs of the files by their name."""

    @classmethod
    def of(cls, spec: HttpSource, expect: Callable[[str], str]) -> HttpFiles:
        url = need(resolve(spec.url), "the URL")
        return cls(spec, Client(spec, url), expect)

    def list(self) -> Iterator[Found]:
        """What the index lists, in its order. A file that it lists twice is one.

        Raises:
            SourceError: the index is none, leads to another host, or has two files of one name.
        """
        if self.spec.index == "none":
            url = self.client.url
            yield self._found(url, _last_part(url) or "file", "")
            return
        self._urls.clear()
        for url, name, version in self._listed():
            if not matches(name, self.spec.pattern):
                continue
            if self._urls.get(name, url) != url:
                raise SourceError(
                    f"{shown_url(self.client.url)} lists two files named {name!r}", hint="set `item_name` to tell them"
                )
            if name not in self._urls:
                yield self._found(url, name, version)

    def _found(self, url: str, name: str, version: str) -> Found:
        self._urls[name] = url
        return Found(checked_name(name, shown_url(self.client.url)), shown_url(url), version)

    @contextmanager
    def open(self, found: Found, known: str) -> Iterator[Download | None]:
        """Read a file. Where the listing does not tell its version, the server is asked whether it is another now."""
        if known and found.version == known:
            yield None
            return
        condition = "" if found.version else known
        with self.client.download(self._urls[found.name], condition) as answer:
            if answer is None:
                yield None
                return
            pieces, version, headers = answer
            kind = headers.get("content-type", "")
            looked = sniffed(pieces, self.expect(found.name), kind, found.url)
            yield Download(looked, found.version or version)

    def _listed(self) -> Iterator[tuple[str, str, str]]:
        data, response = self.client.read(Call(self.client.url), _INDEX_BYTES)
        base = str(response.url)
        if self.spec.index == "html":
            yield from self._links(data, base)
        else:
            yield from self._items(data, base)

    def _links(self, data: bytes, base: str) -> Iterator[tuple[str, str, str]]:
        """Links to files; those to other hosts are no files of this listing."""
        parser = _Links()
        parser.feed(data.decode("utf-8", "replace"))
        for link in parser.links:
            try:
                url = self.client.checked(link.partition("#")[0], base)
            except SourceError:
                continue
            name = _last_part(url)
            # Links that sort the listing have a query and no other name.
            if name and not link.startswith(("?", "#")):
                yield url, name, ""

    def _items(self, data: bytes, base: str) -> Iterator[tuple[str, str, str]]:
        try:
            index = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{shown_url(base)} is no JSON index: {error}", transient=True) from error
        items = _search(self.spec.items, index)
        if not isinstance(items, list):
            raise SourceError(
                f"{shown_url(base)} has no list of files at {self.spec.items!r}", hint="correct `items`, a JMESPath"
            )
        for item in items:
            link = item if isinstance(item, str) else _search(self.spec.item_url, item)
            if not isinstance(link, str) or not link:
                raise SourceError(
                    f"an item of {shown_url(base)} has no URL at {self.spec.item_url!r}",
                    hint="correct `item_url`, a JMESPath",
                )
            url = self.client.checked(link, base)
            name = self._text(self.spec.item_name, item) or _last_part(url) or "file"
            yield url, name, self._text(self.spec.item_version, item)

    def _text(self, path: str | None, item: Any) -> str:
        value = _search(path, item) if path and not isinstance(item, str) else None
        return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _search(path: str, value: Any) -> Any:
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        return jmespath.search(path, value)
    except JMESPathError as error:
        raise RequestError(f"{path!r} cannot be used: {str(error).splitlines()[0]}", hint="see jmespath.org") from error


def _last_part(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])


class _Links(HTMLParser):
    """Collects the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]
