"""OpenSearch as a source: an index read once, from beginning to end, in one view of it.

Pages of a point in time are asked for by what the last hit was sorted by (`search_after`), so that a page may be asked
for again when its answer was lost. A server that cannot do that is read by a scroll, whose answers come once only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

from export_pipelines.errors import SourceError
from export_pipelines.sources.opensearch_errors import source_error
from export_pipelines.sources.opensearch_json import exact_dumps, exact_loads
from export_pipelines.sources.postgres import redact

T = TypeVar("T")
Hit = dict[str, Any]
Query = Mapping[str, Any]

KEEP_ALIVE = "5m"
_ATTEMPTS = 6
_FIRST_DELAY = 0.2
_WATCH_SECONDS = 0.2
_FEWEST, _MOST, _FIRST = 50, 5_000, 500
_PAGE_BYTES = 8 << 20
# The first is made for that and exists since OpenSearch 3; the second needs fielddata of ids, which may be forbidden.
_TIEBREAKERS = ("_shard_doc", "_id")


@dataclass(frozen=True)
class OpenSearchSource:
    """An OpenSearch to read indexes from. Connects only when used. `timeout` in seconds is that of one answer."""

    url: str = field(repr=False)
    user: str = ""
    password: str = field(default="", repr=False)
    verify_certs: bool = True
    ca_file: str | None = None
    timeout: float = 60
    engine: ClassVar[Literal["opensearch"]] = "opensearch"

    @property
    def name(self) -> str:
        """The connection without its password, for people."""
        return redact(self.url)

    @contextmanager
    def session(self, *, timeout: float = 0, watch: Callable[[], None] | None = None) -> Iterator[OpenSearchSession]:
        """A client. `timeout` in seconds bounds all that is done with it, 0 is no bound. `watch` is called every now
        and then in the caller's thread while an answer is waited for; what it raises ends the search."""
        session = OpenSearchSession(self, _client(self), time.monotonic() + timeout if timeout else None, watch)
        try:
            yield session
        finally:
            session.close()


def _client(source: OpenSearchSource) -> Any:
    from opensearchpy import JSONSerializer, OpenSearch

    class Exact(JSONSerializer):
        def loads(self, s: str) -> Any:
            return exact_loads(s)

        def dumps(self, data: Any) -> Any:
            return data if isinstance(data, str | bytes) else exact_dumps(data)

    # It warns of each error with a traceback; ours are told by who calls.
    logging.getLogger("opensearch").setLevel(logging.CRITICAL)
    secured: dict[str, Any] = {"verify_certs": source.verify_certs, "ca_certs": source.ca_file, "ssl_show_warn": False}
    try:
        return OpenSearch(
            [source.url],
            http_auth=(source.user, source.password) if source.user else None,
            timeout=source.timeout,
            max_retries=0,
            retry_on_timeout=False,
            serializer=Exact(),
            **(secured if source.url.startswith("https:") else {}),
        )
    except (ValueError, OSError) as error:
        raise SourceError(f"{source.name} is no address of an OpenSearch: {error}", hint="https://host:9200") from None


class OpenSearchSession:
    """A client at work. Not to be shared between threads."""

    def __init__(
        self, source: OpenSearchSource, client: Any, deadline: float | None, watch: Callable[[], None] | None
    ) -> None:
        self._source, self._client, self._deadline, self._watch = source, client, deadline, watch
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="opensearch")

    def close(self) -> None:
        """Close the connections: the server gives up searches whose client is gone."""
        with suppress(Exception):
            self._client.close()
        self._worker.shutdown(wait=False)

    def version(self) -> str:
        """Of the server."""
        return str(self._ask(self._client.info, f"connecting to {self._source.name}")["version"]["number"])

    def mappings(self, index: str) -> dict[str, dict[str, Any]]:
        """What the mapping says of each field, by its dotted name, of an index or of all that an alias or pattern
        means."""
        answer = self._ask(lambda: self._client.indices.get_mapping(index=index), f"reading the mapping of {index!r}")
        found: dict[str, dict[str, Any]] = {}
        for each in answer.values():
            for name, told in _flat(each.get("mappings", {}).get("properties", {})):
                other = found.setdefault(name, told)
                if other.get("type") != told.get("type"):
                    raise SourceError(
                        f"field {name!r} is of type {other.get('type')} in one index of {index!r} and of type "
                        f"{told.get('type')} in another",
                        hint="name one index, or declare `fields` with their types",
                    )
        if not answer:
            raise SourceError(f"there is no index {index!r}", hint="check the name, alias or pattern")
        return found

    def count(self, index: str, query: Query, at_most: int | None = None) -> int:
        """Hits of a query, exact up to `at_most`."""
        options = {"terminate_after": at_most} if at_most is not None else {}
        answer = self._ask(
            lambda: self._client.count(index=index, body={"query": query}, params=options), f"counting in {index!r}"
        )
        found = int(answer["count"])
        return found if at_most is None else min(found, at_most)

    def pages(
        self, index: str, query: Query, fields: Sequence[str], order_by: Sequence[str], at_most: int | None
    ) -> Iterator[list[Hit]]:
        """All hits of a query in one view of the index, each once, some thousands at a time.

        Raises:
            SourceError: also when hits were lost, which their number tells.
        """
        body = {"query": query, "_source": {"includes": list(fields)}} if fields else {"query": query}
        reader = _Reader(self, index, body, [{name: "asc"} for name in order_by], at_most)
        yield from reader.read()

    # -- talking

    def _ask(self, call: Callable[[], T], doing: str, *, again: bool = True) -> T:
        """The answer to a call, which is made again after transient errors, if it may be."""
        delay = _FIRST_DELAY
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._interruptible(call)
            except Exception as error:
                found = source_error(error, doing, self._source.name)
                # What is gone is gone, though another attempt from the beginning may find it.
                last = attempt == _ATTEMPTS or not again or (found is not None and found.code.startswith("404"))
                if found is None:
                    raise
                if last or not found.transient or self._late(delay):
                    raise found from None
            self._pause(delay)
            delay *= 2
        raise AssertionError("the last attempt returns or raises")

    def _late(self, delay: float) -> bool:
        return self._deadline is not None and time.monotonic() + delay > self._deadline

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _WATCH_SECONDS))
            if self._watch:
                self._watch()

    def _interruptible(self, call: Callable[[], T]) -> T:
        future = self._worker.submit(call)
        try:
            while not wait([future], _WATCH_SECONDS).done:
                if self._watch:
                    self._watch()
                if self._deadline is not None and time.monotonic() > self._deadline:
                    raise SourceError("the search took too long", hint="narrow it down by filters", transient=True)
        except BaseException:
            self.close()
            raise
        return future.result()


class _Reader:
    """Reads all hits once."""

    def __init__(
        self, session: OpenSearchSession, index: str, body: Mapping[str, Any], sort: list[Any], at_most: int | None
    ) -> None:
        self._session, self._client = session, session._client
        self._index, self._body, self._sort = index, dict(body), sort
        self._left = at_most
        self._size = _FIRST
        self._seen = 0
        self._doing = f"reading {index!r}"

    def read(self) -> Iterator[list[Hit]]:
        try:
            yield from self._read()
        except SourceError as error:
            # The view of an index that was deleted is gone, too: asking again is of no use then.
            if error.code.startswith("404") and not self._exists():
                message = f"{self._doing}: the index is gone"
                raise SourceError(message, hint="it was deleted, or its name is another one", code="404") from error
            raise

    def _exists(self) -> bool:
        try:
            return bool(self._session._ask(lambda: self._client.indices.exists(index=self._index), self._doing))
        except SourceError:
            return True

    def _read(self) -> Iterator[list[Hit]]:
        point = self._point_in_time()
        if point is None:
            yield from self._by_scroll()
            return
        try:
            yield from self._by_search_after(point)
        finally:
            with suppress(Exception):
                self._client.delete_pit(body={"pit_id": [point]})

    def _point_in_time(self) -> str | None:
        """The id of a view; None where the server has no such thing, or does not sort it."""
        try:
            answer = self._session._ask(
                lambda: self._client.create_pit(index=self._index, params={"keep_alive": KEEP_ALIVE}), self._doing
            )
        except SourceError as error:
            if error.code in _NOT_KNOWN:
                return None
            raise
        return str(answer.get("pit_id") or answer.get("id"))

    def _by_search_after(self, point: str) -> Iterator[list[Hit]]:
        first, tiebreaker = self._first_page(point)
        if first is None:
            yield from self._by_scroll()
            return
        total, answer = _total(first), first
        while hits := self._checked(answer):
            yield self._counted(hits)
            if self._left == 0:
                return
            if len(hits) < self._asked:
                break
            point = str(answer.get("pit_id") or point)
            answer = self._page(point, tiebreaker, hits[-1]["sort"])
        self._compare(total)

    def _first_page(self, point: str) -> tuple[Any, str]:
        for tiebreaker in _TIEBREAKERS:
            try:
                return self._page(point, tiebreaker, None), tiebreaker
            except SourceError as error:
                if error.code != "400":
                    raise
        return None, ""

    def _page(self, point: str, tiebreaker: str, after: list[Any] | None) -> Any:
        self._asked = self._size if self._left is None else min(self._size, self._left)
        body = {
            **self._body,
            "size": self._asked,
            "pit": {"id": point, "keep_alive": KEEP_ALIVE},
            "sort": [*self._sort, {tiebreaker: "asc"}],
            "track_total_hits": after is None,
            **({"search_after": after} if after is not None else {}),
        }
        return self._session._ask(lambda: self._client.search(body=body), self._doing)

    def _by_scroll(self) -> Iterator[list[Hit]]:
        body = {**self._body, "size": self._size, "sort": self._sort or ["_doc"], "track_total_hits": True}
        options = {"scroll": KEEP_ALIVE}
        answer = self._session._ask(
            lambda: self._client.search(index=self._index, body=body, params=options), self._doing
        )
        total, scroll = _total(answer), answer.get("_scroll_id")
        try:
            while hits := self._checked(answer):
                hits = hits if self._left is None else hits[: self._left]
                yield self._counted(hits)
                if self._left == 0:
                    return
                # A page whose answer was lost is gone, so nothing is asked again here.
                scroll = answer.get("_scroll_id") or scroll
                answer = self._session._ask(partial(self._scrolled, scroll), self._doing, again=False)
            self._compare(total)
        finally:
            with suppress(Exception):
                self._client.clear_scroll(body={"scroll_id": [scroll]})

    def _scrolled(self, scroll: Any) -> Any:
        return self._client.scroll(body={"scroll_id": scroll, "scroll": KEEP_ALIVE})

    def _checked(self, answer: Any) -> list[Hit]:
        """The hits of an answer. Raises SourceError: it is none of all shards."""
        shards = answer.get("_shards", {})
        if answer.get("timed_out") or int(shards.get("failed", 0)):
            raise SourceError(f"{self._doing}: some shards did not answer", hint="see their state", transient=True)
        return list(answer["hits"]["hits"])

    def _counted(self, hits: list[Hit]) -> list[Hit]:
        self._seen += len(hits)
        if self._left is not None:
            self._left -= len(hits)
        # What is in memory at once is bounded whatever the size of documents.
        size = max(1, len(str(hits[0])), len(str(hits[-1])))
        self._size = min(max(_PAGE_BYTES // size, _FEWEST), _MOST)
        return hits

    def _compare(self, total: int) -> None:
        if self._seen != total:
            raise SourceError(
                f"{self._doing}: {self._seen} hits came, and there are {total}", hint="ask again", transient=True
            )


_NOT_KNOWN = ("400", "404 no_handler_found_exception", "405")


def _total(answer: Any) -> int:
    total = answer["hits"]["total"]
    return int(total["value"] if isinstance(total, dict) else total)


def _flat(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Fields by dotted names. What is an object is its fields; a `nested` one is a field of its own."""
    for name, told in properties.items():
        kind = told.get("type")
        if "properties" in told and kind in (None, "object"):
            yield from _flat(told["properties"], f"{prefix}{name}.")
        elif kind != "alias":
            yield prefix + name, {**told, "type": kind or "object"}
