"""A request as people and programs see it. Nothing here knows HTTP."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from export_pipelines import links
from export_pipelines.catalog.requests import RequestRow
from export_pipelines.specs.dataset import Links
from export_pipelines.specs.service import resolve

if TYPE_CHECKING:
    from export_pipelines.api.service import Service

_FIRST_RETRY, _LAST_RETRY = 1, 10
_RUN_SECONDS = 0.5
"""What the run of a request takes beside its work."""


def status_of(service: Service, row: RequestRow, places: Mapping[str, int] | None = None) -> dict[str, Any]:
    """All that is told of a request, as JSON has it; links are paths. With `places`, those of all that wait, nothing is
    asked."""
    return {
        **progress_of(service, row, places=places),
        "dataset": row.dataset,
        "environment": row.environment,
        "cancelling": row.live and row.cancel_at is not None,
        "summary": row.summary,
        "query": row.query.model_dump(mode="json"),
        "user": row.created_by,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "expires_at": row.expires_at,
        "expired": expired(row),
        "file": _file(row),
        "error": _error(row),
        "run": {"id": row.run_id, "url": run_url(service, row.run_id)} if row.run_id else None,
        "links": _links(service, row),
    }


def progress_of(service: Service, row: RequestRow, *, places: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The part of `status_of` that changes while a request is under way."""
    place = _place(service, row, places)
    return {
        "id": row.id,
        "status": row.state.capitalize(),
        "rows": row.rows,
        "bytes": row.bytes,
        "estimated_rows": row.estimate,
        "percent": percent(row),
        "place": place,
        "eta_seconds": eta_seconds(service, row, place),
        "attempts": row.attempts,
    }


def _place(service: Service, row: RequestRow, places: Mapping[str, int] | None = None) -> int | None:
    if row.state != "pending":
        return None
    return service.requests.place(row) if places is None else places.get(row.id, 0)


def percent(row: RequestRow) -> int | None:
    """How far it is: 100 only when it is done, None where nothing is known of its size."""
    if row.state == "succeeded":
        return 100
    if row.state == "pending":
        return 0
    most = min(row.estimate or 0, row.query.limit or row.estimate or 0)
    return min(99, int(row.rows * 100 / most)) if most else None


def eta_seconds(service: Service, row: RequestRow, place: int | None) -> int | None:
    """Seconds until it will be done, as the speed so far or the requests before it let one expect; None if unknown."""
    if row.state == "processing" and row.started_at is not None and row.estimate and row.rows:
        passed = max(0.001, (datetime.now(UTC) - row.started_at).total_seconds())
        return max(1, round((row.estimate - row.rows) * passed / row.rows)) if row.estimate > row.rows else None
    if row.state == "pending" and place is not None:
        typical = service.queue().typical_seconds
        turns = 1 + place // service.spec.concurrency
        return max(1, round((typical + _RUN_SECONDS) * turns)) if typical is not None else None
    return None


def expired(row: RequestRow) -> bool:
    """Whether its file is gone, or is about to be."""
    return row.expired_at is not None or (row.expires_at is not None and row.expires_at <= datetime.now(UTC))


def retry_after(row: RequestRow, place: int | None, eta: int | None) -> int:
    """Seconds after which it makes sense to ask again."""
    wanted = eta // 4 if eta is not None else (place or 0) // 2
    return max(_FIRST_RETRY, min(_LAST_RETRY, wanted))


def progress_text(status: dict[str, Any]) -> str:
    """The header X-Progress: one line of ASCII, of 100 characters at most."""
    if status["status"] == "Pending":
        return f"waiting, {status['place']} before it"
    of = f" of about {status['estimated_rows']}" if status["estimated_rows"] else ""
    share = f", {status['percent']} %" if status["percent"] is not None else ""
    return f"{status['rows']} rows{of}{share}"


def run_url(service: Service, run_id: str) -> str:
    """A run in Dagster's UI."""
    return f"{resolve(service.spec.dagster_url).rstrip('/')}/runs/{quote(run_id)}"


def signed_path(service: Service, row: RequestRow) -> str | None:
    """Path of a link by which anybody may download a request's file: for some time, or as long as it is there."""
    if row.file is None or expired(row):
        return None
    expires = int(time.time() + service.spec.link_minutes * 60)
    dataset = service.project.datasets.get(row.dataset)
    if dataset is not None and dataset.spec.links is Links.PUBLIC:
        expires = links.PUBLIC
    elif row.expires_at is not None:
        expires = min(expires, int(row.expires_at.timestamp()))
    return links.sign(service.keys.key("links"), row.id, row.file.name, expires)


def _file(row: RequestRow) -> dict[str, Any] | None:
    if row.file is None:
        return None
    proof = row.file.proof
    return {
        "name": row.file.name,
        "media_type": row.file.media_type,
        "bytes": proof.raw_size,
        "sha256": proof.raw_sha256,
        "columns": list(row.file.columns),
    }


def _error(row: RequestRow) -> dict[str, Any] | None:
    return {"message": row.error, "hint": row.hint or "", "fault": row.fault} if row.error else None


def _links(service: Service, row: RequestRow) -> dict[str, str | None]:
    own = f"/requests/{row.id}"
    there = row.file is not None and not expired(row)
    return {
        "self": own,
        "download": f"{own}/download" if there else None,
        "file": signed_path(service, row),
        "events": f"{own}/events" if row.live else None,
        "cancel": own if row.live else None,
    }
