"""What `dump:` in a table's defs.yaml may say: dumps of any range, cut into batches, and the reports of their files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from pydantic import Field, field_validator, model_validator

from export_pipelines.specs.model import SpecModel

DEFAULT_DAYS = 7
"""Days of a batch when nothing says how long it is."""

_INTERVAL = re.compile(r"([1-9]\d{0,5})\s*(minute|hour|day|week|month)s?", re.IGNORECASE)


@dataclass(frozen=True)
class Interval:
    """The length of a batch: months or days of the calendar, or seconds that pass. One of them is not zero."""

    months: int = 0
    days: int = 0
    seconds: int = 0


def parse_interval(text: str) -> Interval:
    """The length that `90 minutes`, `4 hours`, `7 days`, `2 weeks` or `1 month` says.

    Raises:
        ValueError: it is no such text.
    """
    match = _INTERVAL.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no length of a batch; write `90 minutes`, `4 hours`, `7 days` or `1 month`")
    number = int(match[1])
    return {
        "minute": Interval(seconds=60 * number),
        "hour": Interval(seconds=3600 * number),
        "day": Interval(days=number),
        "week": Interval(days=7 * number),
        "month": Interval(months=number),
    }[match[2].lower()]


class DumpRange(StrEnum):
    """Whether a dump takes a start and an end."""

    REQUIRED = "required"
    PROHIBITED = "prohibited"
    OPTIONAL = "optional"
    """Without them: everything from the first partition to the last that has ended."""


class Container(StrEnum):
    """What the files of a dump are put into."""

    NONE = "none"
    ZIP = "zip"
    """One ZIP a batch, with one CSV a page."""


class FolderFromEnvironment(SpecModel):
    """A folder that is named by an environment variable (or in `.env`), read when a dump is made."""

    env: str = Field(pattern=r"^\w+$")
    """Name of the variable."""
    default: str | None = None
    """The folder when the variable is not set."""


class ReportColumns(SpecModel):
    """Names of the columns of the report's table; `null` leaves one out. Times are local to the table's zone."""

    path: str = Field(default="file_path", min_length=1)
    """Where the file is. An entry is known by it: there is never a second one of the same path."""
    name: str | None = "file_name"
    """Name of the file."""
    type: str | None = "dump_type"
    """Name of the table's folder, such as `zm`."""
    size: str | None = "file_size"
    """Stored bytes."""
    rows: str | None = "row_count"
    """Rows of the file."""
    range_start: str | None = "range_start"
    """Start of the range; NULL for a snapshot."""
    range_end: str | None = "range_end"
    """End of the range, exclusive; NULL for a snapshot."""
    date: str | None = "created_at"
    """When the file was finished."""


class ReportSpec(SpecModel):
    """A table of downloadable reports, in which each finished file of the table is entered, after it is published."""

    connection: str | None = None
    """Name of a connection in resources/, PostgreSQL or MySQL; the table's own when absent. Its role needs SELECT and
    INSERT."""
    table: str
    """`schema.name` (quote as in SQL) of the table of reports."""
    columns: ReportColumns = ReportColumns()
    """Its columns."""


class DumpSpec(SpecModel):
    """How the table is dumped by `export-pipelines dump`. At most one of batch_days, batch_hours, batch."""

    range: DumpRange | None = None
    """`required`, `prohibited` or `optional`: whether start and end are given. When absent: `required` with
    `partitions`, `prohibited` without."""
    batch_days: int | None = Field(default=None, ge=1)
    """Days of a batch; 7 when nothing is said."""
    batch_hours: int | None = Field(default=None, ge=1)
    """Hours of a batch."""
    batch: str | None = None
    """Any length of a batch: `90 minutes`, `4 hours`, `7 days`, `2 weeks`, `1 month`."""
    page_rows: int | None = Field(default=None, ge=1)
    """Rows of a file (or of an entry of the ZIP) at most; one file a batch when absent."""
    container: Container = Container.NONE
    """`none`, or `zip`: one ZIP a batch with one CSV a page, in place of `compression`."""
    aliases: tuple[str, ...] = ()
    """More names by which `dump` finds the table."""
    folder: str | FolderFromEnvironment | None = None
    """Folder for the files, an absolute path (`~` allowed) or `{env: NAME}`; the store of exports when absent."""
    report: ReportSpec | None = None
    """Where each finished file is entered, those of ordinary exports too."""

    @field_validator("batch")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            parse_interval(value)
        return value

    @model_validator(mode="after")
    def _one_length(self) -> DumpSpec:
        given = [name for name in ("batch_days", "batch_hours", "batch") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of batch_days, batch_hours, batch; found {given}")
        return self

    @property
    def interval(self) -> Interval:
        """The length of a batch."""
        if self.batch is not None:
            return parse_interval(self.batch)
        if self.batch_hours is not None:
            return Interval(seconds=3600 * self.batch_hours)
        return Interval(days=self.batch_days or DEFAULT_DAYS)

    def range_of(self, *, partitioned: bool) -> DumpRange:
        """Whether a dump takes a range."""
        return self.range or (DumpRange.REQUIRED if partitioned else DumpRange.PROHIBITED)

    def problem(self, *, partitioned: bool, keep_export: bool) -> str:
        """What does not fit the rest of the table; empty when all does."""
        if self.range is not None and (self.range is DumpRange.PROHIBITED) == partitioned:
            return (
                "dump.range: prohibited is for tables without `partitions`, since theirs have bounds in their SQL"
                if partitioned
                else f"dump.range: {self.range} needs `partitions`, which bind a range to the table's SQL"
            )
        if self.report is not None and not keep_export:
            return "dump.report leads to the files of exports, so it does not go with `keep_export: false`"
        return ""
