"""Calls over HTTP that are tried again, stay on their hosts, and take up a download where it was cut."""

from __future__ import annotations

import email.utils
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit

from export_pipelines.errors import SourceError
from export_pipelines.sources.files import Gone
from export_pipelines.specs.load_sources import HttpOptions
from export_pipelines.specs.service import resolve

if TYPE_CHECKING:
    import httpx

_AGAIN = (429, 500, 502, 503, 504)
_GONE = (404, 410)
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_LONGEST_WAIT = 300.0
_MAX_BYTES = "set `max_bytes`"
_HINTS = {
    401: "check `auth` of the source",
    403: "check `auth` of the source, and its rights",
    404: "check the URL",
    429: "the source wants fewer calls; let it run less often",
}


@dataclass(frozen=True)
class Call:
    """One call, apart from what all calls of a source have in common."""

    url: str
    method: str = "GET"
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    content: str | None = None


@dataclass(frozen=True)
class Client:
    """Calls of one source. Links and redirects lead to its own host, or to those that the definition names."""

    options: HttpOptions
    url: str
    """Of the source: its host is the one that calls stay on."""
    sleep: Callable[[float], None] = time.sleep
    sign: Callable[[str, str], Mapping[str, str]] | None = field(default=None, kw_only=True)
    """Gives the headers that sign one attempt of a call to the source's own host, by its method and URL."""

    @contextmanager
    def stream(self, call: Call) -> Iterator[httpx.Response]:
        """The answer to a call, its body unread; 200, 206 or 304.

        Raises:
            Gone: 404 or 410.
            SourceError: another status, or no answer, also after it was tried again.
        """
        with ExitStack() as stack:
            yield self._answered(call, stack)

    def read(self, call: Call, limit: int) -> tuple[bytes, httpx.Response]:
        """The whole answer to a call. A connection that is lost in the middle is tried again, too."""
        import httpx

        hint = _MAX_BYTES if limit == self.options.max_bytes else "it is read as a whole: ask for less at a time"
        for attempt in range(1, self.options.attempts + 1):
            try:
                with self.stream(call) as response:
                    return b"".join(bounded(response.iter_bytes(), limit, call.url, hint)), response
            except httpx.HTTPError as error:
                self._again(attempt, None, f"{shown_url(call.url)} was cut: {_reason(error)}")
        raise AssertionError

    def checked(self, url: str, base: str = "") -> str:
        """A URL that may be called, made absolute. Raises SourceError for another host or scheme."""
        joined = urljoin(base or self.url, url)
        try:
            parts = urlsplit(joined)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
            raise SourceError(f"{shown_url(joined)} is no URL that can be called", hint="look at what the source lists")
        if not self._is_allowed(parts.scheme, host, port):
            raise SourceError(
                f"{shown_url(self.url)} leads to another host: {host}", hint="name it in `hosts`, if that is right"
            )
        return joined

    def _is_allowed(self, scheme: str, host: str, port: int | None) -> bool:
        own = urlsplit(self.url)
        if (host, _port(scheme, port)) == (own.hostname, _port(own.scheme, own.port)):
            return own.scheme in (scheme, "http")
        # From http to https of the same host is no other host.
        if host == own.hostname and own.scheme == "http" and scheme == "https" and port is None:
            return True
        return host in self.options.hosts or f"{host}:{_port(scheme, port)}" in self.options.hosts

    def _answered(self, call: Call, stack: ExitStack) -> httpx.Response:
        import httpx

        for attempt in range(1, self.options.attempts + 1):
            try:
                response = self._followed(call, stack)
            except httpx.InvalidURL as error:
                raise SourceError(f"{shown_url(call.url)} is no URL: {error}") from error
            except httpx.HTTPError as error:
                self._again(attempt, None, f"{shown_url(call.url)} does not answer: {_reason(error)}")
                continue
            if response.status_code in (200, 206, 304):
                return response
            self._refuse(response, call)
            self._again(attempt, response, f"{shown_url(call.url)} answers {response.status_code}")
            response.close()
        raise AssertionError

    @cached_property
    def _client(self) -> httpx.Client:
        """Keeps connections for the calls that follow, perhaps thousands. Closed when nobody calls any more."""
        import httpx

        times = httpx.Timeout(self.options.read_timeout, connect=self.options.connect_timeout)
        client = httpx.Client(timeout=times, follow_redirects=False, trust_env=True)
        weakref.finalize(self, client.close)
        return client

    def _followed(self, call: Call, stack: ExitStack) -> httpx.Response:
        """The answer behind redirects, each to a host that is allowed; secrets go to the source's own host only."""
        url, method = _with_params(call.url, call.params), call.method
        for _ in range(_MOST_REDIRECTS + 1):
            request = self._client.build_request(
                method,
                url,
                headers={**self._headers(url), **call.headers, **self._signature(method, url)},
                json=call.json if method == "POST" else None,
                content=call.content if method == "POST" else None,
            )
            response = self._client.send(request, stream=True)
            stack.callback(response.close)
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return response
            url = self.checked(response.headers["location"], str(response.url))
            method = method if response.status_code in (307, 308) else "GET"
            response.close()
        raise SourceError(f"{shown_url(call.url)} redirects more than {_MOST_REDIRECTS} times")

    def _headers(self, url: str) -> dict[str, str]:
        # Bytes as they are: a body that was packed on the way could not be taken up again where it was cut.
        plain = {"Accept-Encoding": "identity", "User-Agent": "export_pipelines"}
        if urlsplit(url).netloc != urlsplit(self.url).netloc:
            return plain
        return {**plain, **{name: resolve(text) for name, text in self.options.headers.items()}, **self._auth()}

    def _signature(self, method: str, url: str) -> Mapping[str, str]:
        own = urlsplit(url).netloc == urlsplit(self.url).netloc
        return self.sign(method, url) if self.sign is not None and own else {}

    def _auth(self) -> dict[str, str]:
        import base64

        auth = self.options.auth
        match auth.type:
            case "basic":
                pair = f"{resolve(auth.user) or ''}:{resolve(auth.password) or ''}"
                return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
            case "bearer":
                return {"Authorization": f"Bearer {resolve(auth.token) or ''}"}
            case "header":
                return {auth.header: resolve(auth.token) or ""}
        return {}

    def _refuse(self, response: httpx.Response, call: Call) -> None:
        """Raise for a status that another try does not change."""
        status = response.status_code
        if status in _AGAIN:
            return
        kind = Gone if status in _GONE else SourceError
        raise kind(f"{shown_url(call.url)} answers {status}", hint=_HINTS.get(status, ""), code=str(status))

    def _again(self, attempt: int, response: httpx.Response | None, what: str) -> None:
        """Wait before the next try, or raise if there is none."""
        seconds = _retry_after(response) if response is not None else None
        if attempt >= self.options.attempts or (seconds or 0) > _LONGEST_WAIT:
            wait = f" and wants {seconds:.0f} s of patience" if seconds else ""
            hint = _HINTS.get(response.status_code if response is not None else 0, "is the source up?")
            raise SourceError(f"{what}{wait}, after {attempt} tries", hint=hint, transient=True)
        self.sleep(min(2.0 ** (attempt - 1), 60.0) if seconds is None else seconds)

    # Downloads

    @contextmanager
    def download(self, url: str, known: str = "") -> Iterator[tuple[Iterator[bytes], str, Mapping[str, str]] | None]:
        """A body in pieces, its version (ETag, or else the time of its change) and its headers; None if it is still
        `known`. A body that is cut is taken up at the next byte, on condition that it is still the same.

        Raises:
            SourceError: from the pieces, too: it was changed meanwhile, or is too large.
        """
        with self.stream(Call(url, headers=_conditions(known))) as response:
            if response.status_code == 304:
                yield None
                return
            if response.status_code != 200:
                raise SourceError(f"{shown_url(url)} answers {response.status_code} to a plain GET")
            pieces = self._resumed(url, response)
            yield bounded(pieces, self.options.max_bytes, url), version_of(response.headers), response.headers

    def _resumed(self, url: str, response: httpx.Response) -> Iterator[bytes]:
        import httpx

        validator = _strong(response.headers)
        done, attempt = 0, 0
        with ExitStack() as stack:
            while True:
                before = done
                try:
                    for piece in response.iter_bytes():
                        done += len(piece)
                        yield piece
                    return
                except httpx.HTTPError as error:
                    attempt = 1 if done > before else attempt + 1
                    lost = f"{shown_url(url)} was cut after {done} bytes: {_reason(error)}"
                    if not validator or "content-encoding" in response.headers:
                        raise SourceError(lost, hint="it cannot be taken up; run it again", transient=True) from error
                    self._again(attempt, None, lost)
                    response = stack.enter_context(self._rest(url, validator, done))

    @contextmanager
    def _rest(self, url: str, validator: str, done: int) -> Iterator[httpx.Response]:
        headers = {"Range": f"bytes={done}-", "If-Range": validator}
        with self.stream(Call(url, headers=headers)) as response:
            placed = response.headers.get("content-range", "").startswith(f"bytes {done}-")
            if response.status_code != 206 or not placed or _strong(response.headers) not in ("", validator):
                raise SourceError(
                    f"{shown_url(url)} was cut after {done} bytes, and is not the same now, or cannot be taken up",
                    hint="run it again",
                    transient=True,
                )
            yield response


def bounded(pieces: Iterator[bytes], limit: int, url: str, hint: str = _MAX_BYTES) -> Iterator[bytes]:
    """The pieces, at most `limit` bytes. Raises SourceError."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise SourceError(f"{shown_url(url)} is larger than {limit} bytes", hint=hint)
        yield piece


def shown_url(url: str) -> str:
    """A URL without password, query and fragment, which may have secrets; for people and manifests."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))[:500]
    except ValueError:
        return "a URL that is not valid"


def _with_params(url: str, params: Mapping[str, str]) -> str:
    """A URL with more parameters behind those that it has: httpx would drop these."""
    more = urlencode(params)
    return f"{url}{'&' if '?' in url else '?'}{more}" if more else url


def version_of(headers: Mapping[str, str]) -> str:
    """ETag, or the time of the last change, or nothing."""
    return headers.get("etag", "") or headers.get("last-modified", "")


def _conditions(known: str) -> dict[str, str]:
    if known.startswith(('"', 'W/"')):
        return {"If-None-Match": known}
    return {"If-Modified-Since": known} if known and _is_date(known) else {}


def _is_date(text: str) -> bool:
    return email.utils.parsedate_tz(text) is not None and text.endswith("GMT")


def _strong(headers: Mapping[str, str]) -> str:
    """What proves that bytes are still the same: a strong ETag, or else the time of the last change."""
    etag = headers.get("etag", "")
    return etag if etag.startswith('"') else headers.get("last-modified", "")


def _port(scheme: str, port: int | None) -> int:
    return port or (443 if scheme == "https" else 80)


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
