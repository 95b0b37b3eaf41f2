"""`/uploads/sets/versions` for programs: what a data set was and is, how versions differ, and an older one again."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from export_pipelines.api import uploads
from export_pipelines.api.auth import Uploader, User, address_of, service_of
from export_pipelines.api.models import Name
from export_pipelines.api.problems import Problem, responses
from export_pipelines.catalog.audit import Actor
from export_pipelines.errors import TargetError
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.steps.load_context import TableVersion

router = APIRouter(prefix="/uploads/sets/versions", tags=["uploads"])

Number = Annotated[int, Field(ge=1, le=10**9)]
Row = list[str | None]


class DataSetIn(BaseModel):
    """A data set that people made by uploading."""

    model_config = ConfigDict(extra="forbid")

    area: Name = Field(description="Id of the definition that takes it.", examples=["people/inbox"])
    organisation: Name = Field(examples=["health"])
    dataset: Name = Field(examples=["beds"])


class ComparisonIn(DataSetIn):
    """Two versions of a data set."""

    old: Number
    new: Number
    sample: int = Field(default=5, ge=0, le=100, description="Rows to show of each kind, at most.")


class RestoreIn(DataSetIn):
    """A version that readers are to see again."""

    version: Number


class VersionOut(BaseModel):
    """A version of a data set that is kept."""

    number: int
    rows: int
    created: datetime
    file_name: str = Field(description="What it was loaded from; empty if that is not known.", examples=["beds.csv"])
    current: bool = Field(description="Whether readers see it.")


class DifferenceOut(BaseModel):
    """How two versions differ. Without a key, a row that changed is one that is removed and one that is added."""

    columns: list[str]
    added: int
    removed: int
    changed: int
    added_rows: list[Row]
    removed_rows: list[Row]
    changed_rows: list[tuple[Row, Row]] = Field(description="Old and new.")


@router.get("", responses=responses())
def list_versions(request: Request, given: Annotated[DataSetIn, Query()], user: Uploader) -> list[VersionOut]:
    """The versions of a data set that are kept, newest first; none before its first load."""
    return _versions(request, given, user)


@router.get("/difference", responses=responses())
def compare_versions(request: Request, given: Annotated[ComparisonIn, Query()], user: Uploader) -> DifferenceOut:
    """How two versions differ: all rows are compared."""
    area, place = _place(request, given, user)
    try:
        found = uploads.difference(service_of(request), area, *place, given.old, given.new, given.sample)
    except TargetError as error:
        raise Problem(422, error.message, hint=error.hint) from error
    return DifferenceOut.model_validate(asdict(found))


@router.post("/restore", responses=responses())
def restore_version(request: Request, given: RestoreIn, user: Uploader) -> list[VersionOut]:
    """Have readers see a version again that is kept. Its versions, as GET /uploads/sets/versions lists them."""
    area, place = _place(request, given, user)
    actor = Actor(user.name, address_of(request))
    try:
        uploads.restore(service_of(request), area, *place, given.version, actor)
    except TargetError as error:
        raise Problem(422, error.message, hint=error.hint) from error
    return _versions(request, given, user)


def _versions(request: Request, given: DataSetIn, user: User) -> list[VersionOut]:
    area, place = _place(request, given, user)
    return [_told(each) for each in uploads.versions(service_of(request), area, *place)]


def _place(request: Request, given: DataSetIn, user: User) -> tuple[LoadDefinition, tuple[str, str]]:
    return uploads.area_of(service_of(request), user, given.area), (given.organisation, given.dataset)


def _told(version: TableVersion) -> VersionOut:
    return VersionOut(**{name: getattr(version, name) for name in VersionOut.model_fields})
