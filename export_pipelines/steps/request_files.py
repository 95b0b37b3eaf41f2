"""What becomes of the files of requests: they expire, and what nobody knows of is removed."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from export_pipelines.catalog.requests import RequestRow, Requests
from export_pipelines.errors import ExportPipelinesError
from export_pipelines.stores import open_store
from export_pipelines.stores.base import ObjectInfo, Store

log = logging.getLogger("export_pipelines")

FOLDER = "requests"
"""Of the keys of all files of requests: `requests/<environment>/<request id>/<attempt>-<file name>`."""

_ORPHAN_SECONDS = 3600.0
_TEMPORARY_SECONDS = 24 * 3600.0
_AT_ONCE = 500


def store_of(row: RequestRow, store: Store) -> Store:
    """The store which a request's file is in: `store`, unless the service wrote to another one then."""
    return store if row.store_url in (None, store.url) else open_store(row.store_url or "")


def expire_requests(store: Store, requests: Requests) -> list[str]:
    """Delete the files whose time is over and that nobody is downloading; the ids of their requests.

    Crash: a file that was noted as expired and is still there is removed by `sweep_requests`. One that cannot be
    deleted keeps none of the others from going.
    """
    gone = []
    for row in requests.expiring():
        # Noted first: from then on no download begins.
        if row.file is None or requests.expired(row.id) is None:
            continue
        try:
            store_of(row, store).delete(row.file.proof.key)
        except ExportPipelinesError as error:
            log.warning("the expired file of request %s is still there: %s", row.id, error.message)
        gone.append(row.id)
    return gone


def sweep_requests(store: Store, requests: Requests, older_than_seconds: float = _ORPHAN_SECONDS) -> list[str]:
    """Delete what attempts left behind that were killed, and expired files that are still there; return their keys.

    Only files of requests that the catalog knows are touched: another project may use the same store.
    """
    before = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
    old = [(info, parts[2]) for info in store.list(f"{FOLDER}/") if (parts := _parts(info, before))]
    swept = []
    for start in range(0, len(old), _AT_ONCE):
        some = old[start : start + _AT_ONCE]
        known = {row.id: row for row in requests.many(sorted({request for _, request in some}))}
        for info, request in some:
            if request in known and _is_left(info, known[request]):
                store.delete(info.key)
                swept.append(info.key)
    store.sweep(max(older_than_seconds, _TEMPORARY_SECONDS))
    return swept


def _parts(info: ObjectInfo, before: datetime) -> list[str] | None:
    parts = info.key.split("/")
    return parts if len(parts) == 4 and info.modified < before else None


def _is_left(info: ObjectInfo, row: RequestRow) -> bool:
    """Whether a file belongs to a request and is not its answer."""
    if row.live:
        return False
    current = row.file is not None and row.expired_at is None and row.file.proof.key == info.key
    return not current
