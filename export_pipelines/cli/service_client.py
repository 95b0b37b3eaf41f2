"""A client of the service of exports on demand. It needs no project: the service may be anywhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from export_pipelines.errors import BadRange, RequestError

if TYPE_CHECKING:
    import httpx

LIVE = ("Pending", "Processing")
_CONNECT_SECONDS = 10.0
_READ_SECONDS = 60.0
_TRIES = 6
"""Attempts of a call that does not get through, a second, two, four … apart."""
_TIRED = (429, 502, 503, 504)
"""Statuses after which the same call may well succeed."""

Status = dict[str, Any]


class WrongQuestion(BadRange):
    """What was asked for cannot be asked: unknown names, wrong values."""


class CannotReach(RequestError):
    """The service does not answer."""


@dataclass
class ServiceClient:
    """Calls the service at a URL. Calls that do not get through are made again: each may be made twice."""

    url: str
    token: str | None = field(default=None, repr=False)
    tell: Callable[[str], object] = lambda text: None
    """Told when something has to be tried again."""
    _reached: bool = False

    def __post_init__(self) -> None:
        import httpx

        local = is_local(self.url)
        headers = {"Accept": "application/json", "User-Agent": "export-pipelines"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            self._http = httpx.Client(
                base_url=self.url.rstrip("/") + "/",
                headers=headers,
                timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS),
                # No proxy of the environment stands between us and this machine.
                trust_env=not local,
            )
        except (httpx.InvalidURL, ValueError):
            raise WrongQuestion(f"{self.url!r} is no URL", hint="write https://host or https://host/path") from None

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def get(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        """The JSON at a path."""
        return self._call("GET", path, params=parameters).json()

    def ask(self, question: Mapping[str, Any]) -> Status:
        """Ask; the request that answers it, which may be an older one."""
        found: Status = self._call("POST", "requests", json=question).json()
        return found

    def cancel(self, request: str) -> Status:
        """One does not want the answer any more."""
        found: Status = self._call("DELETE", f"requests/{request}").json()
        return found

    def follow(self, request: str) -> Iterator[Status]:
        """Every change of a request, and at last its end. Goes on by looking again when the stream of events breaks."""
        status: Status = self.get(f"requests/{request}")
        while True:
            yield status
            if status["status"] not in LIVE:
                return
            yield from ({**status, **each} for each in self._events(request))
            answer = self._call("GET", f"requests/{request}")
            status = answer.json()
            if status["status"] in LIVE:
                yield status
                time.sleep(_seconds(answer.headers.get("retry-after")))

    def _events(self, request: str) -> Iterator[Status]:
        """Progress as the service tells it, until it ends or the connection does."""
        import httpx

        headers = {"Accept": "text/event-stream"}
        try:
            with self._http.stream("GET", f"requests/{request}/events", headers=headers) as answer:
                if answer.status_code != 200 or "event-stream" not in answer.headers.get("content-type", ""):
                    return
                kind = ""
                for line in answer.iter_lines():
                    if line.startswith("event:"):
                        kind = line.removeprefix("event:").strip()
                    elif line.startswith("data:") and kind == "progress":
                        yield json.loads(line.removeprefix("data:"))
        except (httpx.TransportError, ValueError):
            return

    @contextmanager
    def part(self, request: str, start: int, etag: str | None) -> Iterator[httpx.Response]:
        """The file of a request from a byte on, if it is still the one of that tag, or else the whole of it."""
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", **({"If-Range": etag} if etag else {})}
        # The store itself may hand it out: it is at another host, which does not get our token.
        with self._http.stream("GET", f"requests/{request}/download", headers=headers, follow_redirects=True) as answer:
            yield answer

    def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Call until it gets through. Raises what the service says if it refuses."""
        import httpx

        for attempt in range(1, _TRIES + 1):
            wait = float(2 ** (attempt - 1))
            try:
                answer = self._http.request(method, path.lstrip("/"), **more)
            except httpx.TransportError as error:
                # What was never reached is more likely a wrong address than a short break.
                if attempt == _TRIES or not self._reached:
                    raise self._away(error) from None
                said = "does not answer"
            else:
                self._reached = True
                if answer.is_success:
                    return answer
                if answer.status_code not in _TIRED or attempt == _TRIES:
                    raise refusal(answer)
                wait, said = _seconds(answer.headers.get("retry-after"), wait), f"answers {answer.status_code}"
            self.tell(f"{self.url} {said}; trying again in {wait:.0f} s")
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _away(self, error: Exception) -> CannotReach:
        return CannotReach(
            f"{self.url} cannot be reached: {str(error) or type(error).__name__}",
            hint="does the service run there (`export-pipelines up`)? Give another address by --url",
        )

    def absolute(self, path: str) -> str:
        """The URL of a path that the service names."""
        return urljoin(self.url.rstrip("/") + "/", path.lstrip("/"))


def is_local(url: str) -> bool:
    """Whether a URL leads to this machine."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def refusal(answer: httpx.Response) -> RequestError:
    """What the service says when it refuses, as an error of ours."""
    try:
        answer.read()
        said = answer.json()
    except ValueError:
        said = {}
    said = said if isinstance(said, dict) else {}
    message = str(said.get("detail") or said.get("title") or f"the service answers {answer.status_code}")
    hint = str(said.get("hint") or "")
    problems = [each for each in said.get("errors") or () if isinstance(each, dict)]
    if len(problems) > 1:
        hint = "; ".join(filter(None, (str(each.get("hint") or "") for each in problems)))
    if answer.status_code in (400, 422):
        return WrongQuestion(message, hint=hint)
    if answer.status_code == 401:
        hint = "give a token in EXPORT_PIPELINES_TOKEN, or by --token; `export-pipelines token create` makes one"
    if reference := said.get("reference"):
        message += f" (reference {reference})"
    return RequestError(message, hint=hint)


def _seconds(header: str | None, otherwise: float = 1.0) -> float:
    """Retry-After, within reason."""
    return min(60.0, max(0.2, float(header))) if header and header.isdecimal() else otherwise
