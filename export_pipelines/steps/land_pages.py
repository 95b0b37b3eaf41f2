"""All pages of an API as one file, for styles that take it as the whole of something."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from export_pipelines.errors import IntegrityError, SourceError
from export_pipelines.formats.parsing.pages import PageRecords, page_line
from export_pipelines.sources.http_client import shown_url
from export_pipelines.sources.rest import Pages
from export_pipelines.steps.land_digests import Write
from export_pipelines.steps.land_rows import Pulled

PullPages = Callable[[str, Callable[[], Write]], Pulled]
"""Gets the digest that landed last, and what throws away what was written and gives where to write."""


def pull_together(pages: Pages, path: str, before: str, begin: Callable[[], Write]) -> Pulled:
    """Write all pages, a line each. `path` leads to the records of a page, `before` is the digest of those that landed
    last: the same records are nothing new, whatever else replies say, such as times and cursors.

    Raises:
        SourceError: the API failed, a page has no records, or there is no page at all. Nothing may land then.
    """
    write = begin()
    pages = replace(pages, with_end=True)
    records = PageRecords(path, pages.whole_name)
    digest = hashlib.sha256(f"{path}\n".encode())
    count = rows = size = 0
    for found in pages.list():
        count += 1
        size += len(pages.reply)
        _check(pages, found.name, size)
        line = page_line(pages.reply)
        here = list(records.of(_value(pages, records, line, found.name)))
        digest.update(_exact(here))
        rows += len(here)
        write(line)
    if not count:
        raise SourceError(f"{shown_url(pages.call.url)} was not called", hint="`repeat` gives no values")
    state = {"mode": "full", "pages": str(count), "digest": digest.hexdigest()}
    return Pulled(rows, state, changed=state["digest"] != before)


def _check(pages: Pages, name: str, size: int) -> None:
    if pages.reply_format != "json":
        raise SourceError(
            f"{name} is {pages.reply_format}, and only pages of JSON land as one file",
            hint="use style append or upsert, or ask the API for JSON",
        )
    if size > (limit := pages.client.options.max_bytes):
        raise SourceError(f"{shown_url(pages.call.url)} gives more than {limit} bytes", hint="set `max_bytes`")


def _value(pages: Pages, records: PageRecords, line: bytes, name: str) -> Any:
    """What the page has where records should be. Of an API with pages that is a list: an object tells of an error."""
    try:
        value = records.value(line, name)
    except IntegrityError as error:
        raise SourceError(error.message, hint=error.hint, transient=True) from error
    if isinstance(value, dict) and pages.paging.by != "none":
        raise SourceError(f"{name} has one object where a list should be", hint="correct `file: {records: …}`")
    return value


def _exact(records: list[Any]) -> bytes:
    """The records with their numbers as they stand there, whatever page they are on."""
    if not records:
        return b""
    return json.dumps(records, default=lambda number: {"": str(number)})[1:-1].encode() + b", "
