"""A request as the catalog has it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from export_pipelines.catalog.audit import Actor
from export_pipelines.errors import ExportPipelinesError, FormatError, IdentityNeeded, RequestError, SourceError
from export_pipelines.manifest import FileProof
from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.query import Query

LIVE = ("pending", "processing")


class Fault(StrEnum):
    """Why a request failed, as far as it says who can do something about it."""

    QUESTION = "question"
    """Who asked: another question would be answered."""
    AWAY = "away"
    """Nobody: what was away may be there later."""
    INSIDE = "inside"
    """The operator."""


def fault_of(error: Exception) -> Fault:
    """The fault of an error that came up while rows were read and written."""
    if isinstance(error, ExportPipelinesError) and error.transient:
        return Fault.AWAY
    # Values that do not fit each other: those of a filter, as a rule.
    asked = isinstance(error, SourceError) and error.code.startswith("22")
    if asked or (isinstance(error, RequestError | FormatError) and not isinstance(error, IdentityNeeded)):
        return Fault.QUESTION
    return Fault.INSIDE


class RequestFile(SpecModel):
    """The file of a request that succeeded."""

    proof: FileProof
    """As it is stored: key, sizes, digests. Raw is what is downloaded: the file after its compression, before its
    encryption, so that `raw_sha256` is the digest that people check."""
    name: str
    """File name for people."""
    media_type: str
    columns: tuple[str, ...]
    row_digest: str = ""


@dataclass(frozen=True)
class RequestRow:
    """A request. Times are zone-aware."""

    id: str
    number: int
    """Counts all requests, in the order in which they came."""
    environment: str
    dataset: str
    query: Query
    data_version: str
    summary: str
    state: str
    created_by: str
    origin: str
    turn: int
    """What the queue sorts by before `number`; 0 unless users take turns."""
    estimate: int | None
    """Rows that were expected before the work began."""
    rows: int
    bytes: int
    """Bytes of the format, before compression, so far."""
    attempts: int
    run_id: str | None
    error: str | None
    hint: str | None
    fault: str | None
    """Of one that failed, see `Fault`; None if it failed before faults were noted."""
    store_url: str | None
    file: RequestFile | None
    created_at: datetime
    submitted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    beat_at: datetime | None
    cancel_at: datetime | None
    """When its cancellation was asked for."""
    expires_at: datetime | None
    expired_at: datetime | None

    @property
    def live(self) -> bool:
        """Whether it waits or is at work."""
        return self.state in LIVE


@dataclass(frozen=True)
class Asked:
    """Somebody asks: who, from where, and how they want to be told of the end."""

    actor: Actor
    origin: str = "api"
    """api, page, client or exports."""
    email: str | None = None
    webhook: str | None = None


@dataclass(frozen=True)
class Subscriber:
    """Somebody who wants a request's answer."""

    username: str
    email: str | None
    webhook: str | None


@dataclass(frozen=True)
class Queue:
    """Requests under way."""

    pending: int
    processing: int
    oldest_seconds: float
    """Since the oldest that waits was asked; 0 when none does."""
    typical_seconds: float | None
    """Median run time of the last ones that succeeded."""


COLUMNS = ", ".join(name for name in RequestRow.__dataclass_fields__)
SELECT = f"SELECT {COLUMNS} FROM request "


def row_of(found: dict[str, Any]) -> RequestRow:
    """The request of a row of `SELECT`."""
    values = dict(found)
    values["query"] = Query.model_validate(values["query"])
    values["file"] = RequestFile.model_validate(values["file"]) if values["file"] else None
    return RequestRow(**values)
