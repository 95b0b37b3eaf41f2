"""The digest of a served table: by it a copy elsewhere is compared with this table."""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from export_pipelines.api.auth import service_of
from export_pipelines.api.problems import responses
from export_pipelines.api.reading import SchemaName, TableName, published, told, version_of, version_token
from export_pipelines.api.signing import Reader, SignedRoute
from export_pipelines.api.users import Refused
from export_pipelines.steps.table_digest import digest_of

router = APIRouter(prefix="/api/v1", tags=["pages"], route_class=SignedRoute)

MAX_AT_ONCE = 2
"""Tables that are measured at the same time, a process: each is read whole."""

_at_work = threading.BoundedSemaphore(MAX_AT_ONCE)


class DigestColumn(BaseModel):
    """A column that is part of the digest."""

    name: str = Field(examples=["departure"])
    type: str = Field(description="As PostgreSQL spells it.", examples=["timestamp with time zone"])


class DigestOut(BaseModel):
    """What a version of a table holds."""

    version: int = Field(description="Number of the version.")
    token: str = Field(description="The same as `version` of its pages.")
    rows: int
    digest: str = Field(description="Sum of 64-bit hashes of the rows' text, whatever their order.", examples=["-42"])
    columns: list[DigestColumn]


@router.get("/table-digest/{schema}/{table}", responses=responses(410, 429))
def table_digest(
    request: Request,
    schema: SchemaName,
    table: TableName,
    reader: Reader,
    version: Annotated[str, Query(max_length=80, description="Which version: take it from `next`.")] = "",
) -> DigestOut:
    """Number of rows and digest of a table, or of a version of it that is kept. Reads all of it.

    A copy whose rows have the same digest is the same."""
    service = service_of(request)
    target = published(service, reader, schema, table).spec.target
    number = version_of(service, target, version) if version else None
    if not _at_work.acquire(blocking=False):
        raise Refused(f"{MAX_AT_ONCE} tables are being measured", hint="try again", status=429, retry_after=10)
    try:
        source = service.resource(target.connection)
        found, columns, digest = told(lambda: digest_of(source, target, number), once_more=number is None)
    finally:
        _at_work.release()
    return DigestOut(
        version=found,
        token=version_token(service, target, found),
        rows=digest.rows,
        digest=digest.digest,
        columns=[DigestColumn(name=name, type=kind) for name, kind in columns],
    )
