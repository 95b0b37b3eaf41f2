"""Waiting for requests: for their end, and for each of their changes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fastapi.concurrency import run_in_threadpool

from export_pipelines.api.views import progress_of, status_of
from export_pipelines.catalog.requests import RequestRow

if TYPE_CHECKING:
    from export_pipelines.api.service import Service

HEARTBEAT_SECONDS = 15.0
_LOOK_SECONDS = 5.0
"""Somebody who waits looks so often without having heard anything."""
_BREATH_SECONDS = 0.25
"""Between two events of one request."""


async def wait_for_end(service: Service, row: RequestRow, seconds: float) -> RequestRow:
    """The request when it has ended, or after some seconds as it is then."""
    deadline = time.monotonic() + seconds
    with service.watcher.bell(row.id) as bell:
        while row.live and not service.watcher.stopping and (left := deadline - time.monotonic()) > 0:
            found = await run_in_threadpool(service.requests.get, row.id)
            row = found or row
            if row.live:
                await bell.wait(min(left, _LOOK_SECONDS))
        return row


async def events(service: Service, row: RequestRow) -> AsyncIterator[str]:
    """Server-sent events of a request: one of its state now, one a change, and one of its end, then no more."""
    told, beaten, number = "", time.monotonic(), 0
    with service.watcher.bell(row.id) as bell:
        while row.live and not service.watcher.stopping:
            text = as_json(await run_in_threadpool(progress_of, service, row))
            if text != told:
                number += 1
                told, beaten = text, time.monotonic()
                yield f"id: {number}\nevent: progress\ndata: {text}\n\n"
            elif time.monotonic() - beaten > HEARTBEAT_SECONDS:
                beaten = time.monotonic()
                yield ": still here\n\n"
            await asyncio.sleep(_BREATH_SECONDS)
            await bell.wait(_LOOK_SECONDS)
            found = await run_in_threadpool(service.requests.get, row.id)
            if found is None:
                return
            row = found
        if not row.live:
            yield f"id: {number + 1}\nevent: end\ndata: {as_json(await run_in_threadpool(status_of, service, row))}\n\n"


def as_json(value: dict[str, Any]) -> str:
    """On one line, times as ISO 8601."""
    return json.dumps(value, separators=(",", ":"), default=_plain)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
