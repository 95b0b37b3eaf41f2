"""A table that a service like ours serves: its digest and its pages, by calls that are signed (HAWK).

Answers are signed, too: what somebody changed on the way is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from export_pipelines.errors import SourceError
from export_pipelines.sources.files import need
from export_pipelines.sources.hawk import Signed, signed
from export_pipelines.sources.http_client import Call, Client, shown_url
from export_pipelines.sources.opensearch_json import exact_loads
from export_pipelines.specs.load_sources import TableApiSource
from export_pipelines.specs.service import resolve

_PAGE_BYTES = 256 << 20


@dataclass(frozen=True)
class ServedDigest:
    """What a service says of a version of a table."""

    token: str
    """The version, as its pages take it."""
    rows: int
    digest: str
    columns: tuple[tuple[str, str], ...]
    """Names and types."""


@dataclass(frozen=True)
class ServedPage:
    """Some rows. Numbers are as they stand in the JSON."""

    headers: list[str]
    values: list[list[Any]]


class TableApi:
    """A table of a service."""

    def __init__(self, spec: TableApiSource) -> None:
        self._url = need(resolve(spec.url), "the URL").rstrip("/")
        schema, _, table = spec.table.partition(".")
        self._place = f"{quote(schema)}/{quote(table)}"
        self._client = Client(spec, self._url, sign=self._sign)
        self._id = need(resolve(spec.client), "`client`")
        self._key = need(resolve(spec.key), "`key`").encode()
        self._signed: Signed | None = None
        self.name = f"{spec.table} of {shown_url(self._url)}"

    @property
    def url(self) -> str:
        """Where it is, for manifests."""
        return shown_url(f"{self._url}/api/v1/table-data/{self._place}")

    def digest(self, version: str = "") -> ServedDigest:
        """The digest of a version, or of the one that is shown now.

        Raises:
            Gone: the table is not there, or (code 410) the version is not kept any more.
            SourceError: the service refused or failed, or its answer was changed on the way.
        """
        query = f"?{urlencode({'version': version})}" if version else ""
        found = self._get(f"{self._url}/api/v1/table-digest/{self._place}{query}")
        with _expected(self.name):
            columns = tuple((str(each["name"]), str(each["type"])) for each in found["columns"])
            return ServedDigest(str(found["token"]), int(found["rows"]), str(found["digest"]), columns)

    def pages(self, version: str) -> Iterator[ServedPage]:
        """All pages of a version. Raises what `digest` raises."""
        url: str | None = f"{self._url}/api/v1/table-data/{self._place}?{urlencode({'version': version})}"
        seen: set[str] = set()
        while url is not None:
            found = self._get(url)
            with _expected(self.name):
                page, following = ServedPage(list(found["headers"]), list(found["values"])), found["next"]
            yield page
            if following in seen:
                raise SourceError(f"{self.name} goes in circles: a page leads to an earlier one")
            seen.add(following)
            url = self._client.checked(following) if following is not None else None

    def _get(self, url: str) -> dict[str, Any]:
        body, response = self._client.read(Call(url), _PAGE_BYTES)
        self._check(body, response.headers)
        with _expected(self.name):
            found = exact_loads(body.decode())
            if not isinstance(found, dict):
                raise ValueError("no object")
        return found

    def _sign(self, method: str, url: str) -> Mapping[str, str]:
        self._signed = signed(self._id, self._key, method, url)
        return {"Authorization": self._signed.header}

    def _check(self, body: bytes, headers: Mapping[str, str]) -> None:
        said = headers.get("server-authorization", "")
        if self._signed is None or not self._signed.is_answered_by(said, body, headers.get("content-type", "")):
            raise SourceError(
                f"the signature of an answer of {self.name} is not right",
                hint="does a proxy change answers? Does the service sign them?",
            )


@contextmanager
def _expected(name: str) -> Iterator[None]:
    """Raises SourceError where an answer has another shape."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise SourceError(f"{name} gives an answer that is no such table: {error}") from error
