"""What a defs.yaml of type `export_pipelines.LoadTable` may say: where files or rows come from, what they are, and how
they get into a table of PostgreSQL.

The way in has two steps: *land* copies what the source has into a store, as it is; *load* puts landed files into the
target. Both are assets.
"""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from export_pipelines.specs.load_names import OWN_COLUMNS
from export_pipelines.specs.load_sources import (
    DatabaseSource,
    RestSource,
    Source,
    TableApiSource,
    TableSource,
    UploadSource,
    WfsSource,
)
from export_pipelines.specs.load_times import DaySpec, Pause, pause_length
from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.retries import RetrySpec
from export_pipelines.specs.table import PartitionsSpec

_COLUMN = re.compile(r"[a-z_][a-z0-9_]*")


# What files are


class FileSpec(SpecModel):
    """What landed files hold."""

    format: Literal["auto", "csv", "json", "jsonl", "parquet", "excel", "gml"] = "auto"
    """By the name's end when `auto`."""
    compression: Literal["auto", "none", "gzip", "zstd", "zip"] = "auto"
    """By the content's first bytes when `auto`. Of a ZIP, all files that match `member` are read."""
    member: str = "*"
    """Files in a ZIP."""
    encoding: str = "utf-8"
    """Of text. A byte order mark counts more."""
    delimiter: str = ","
    quote: str = '"'
    header: bool = True
    """Whether the first line of CSV has names; without, columns are those of the definition, in order."""
    skip_rows: int = Field(default=0, ge=0)
    """Lines (of Excel: rows) before the header."""
    null_words: tuple[str, ...] = ()
    """Values that mean NULL when they are the whole value: `NULL`, `n/a`, `-`. An empty unquoted value always does."""
    trim: bool = False
    """Whether spaces around values go."""
    records: str = "@"
    """JMESPath to the list of records in JSON."""
    sheet: str | int = 0
    """Name or number (from 0) of an Excel sheet."""
    max_columns: int = Field(default=1_600, ge=1)
    max_line_bytes: int = Field(default=64 * 2**20, ge=1)
    """A longer line fails the file."""
    max_expansion: float = Field(default=200, ge=1)
    """A file that unpacks to more than so many times its size (and over a gibibyte) is a bomb, and fails."""


# How it gets into the table


class Style(StrEnum):
    """How a file changes the table."""

    APPEND = "append"
    """Its rows are added."""
    REPLACE = "replace"
    """The table is what the file holds."""
    UPSERT = "upsert"
    """Rows with a known key are changed, the others added."""
    SNAPSHOT = "snapshot"
    """Rows that are new are added, and rows that the file lacks are removed (or marked): by `key`, or by content."""
    SHADOW = "shadow"
    """Built beside, compared by digest, and swapped only if something is different."""
    HISTORY = "history"
    """Slowly changing dimension of type 2: each version of a row with `valid_from` and `valid_to`."""
    PARTITION = "partition"
    """The rows of the file's years, months or days (`partition_by`) replace those that are there."""


WHOLE = (Style.REPLACE, Style.SNAPSHOT, Style.SHADOW)
"""Styles whose table is what the newest file holds: an older one comes too late."""


class LoadColumn(SpecModel):
    """A column of the typed table."""

    type: str = "text"
    """PostgreSQL's type."""
    source: str | None = None
    """Name in the file (of JSON a JMESPath); the column's own name when absent."""
    sql: str | None = None
    """Expression that makes it, over the file's columns as text: `to_date(born, 'DD.MM.YYYY')`. A cast when absent."""
    transform: Literal["none", "date", "hash"] = "none"
    """`date`: from an Excel date or a text. `hash`: a keyed hash (variable EXPORT_PIPELINES_SECRET), for what must not
    be stored as it is."""
    nullable: bool = True
    description: str = ""


class DriftPolicy(StrEnum):
    """What happens when a file has other columns, or values that do not fit."""

    EVOLVE = "evolve"
    """New columns are added to the table, as text."""
    FREEZE = "freeze"
    """The load fails."""
    DISCARD_ROW = "discard_row"
    """Rows with a value in a new column go to quarantine."""
    DISCARD_VALUE = "discard_value"
    """New columns are left out."""


class TargetSpec(SpecModel):
    """The table that is loaded."""

    connection: str = "warehouse"
    """Name of a PostgreSQL connection in resources/."""
    table: str
    """`schema.name`, lower-case letters, digits and `_`."""
    published: bool = False
    """Whether the read API serves it. Then it has an index of `row_id`, which the next run makes if it is lacking."""
    grants: tuple[str, ...] = ()
    """Roles that may read it, from when it is made; to those that are added later `export-pipelines grants --apply`
    gives it."""
    keep_versions: int = Field(default=3, ge=1)
    """Old versions that are kept for a rollback, of styles that build anew."""

    @field_validator("table")
    @classmethod
    def _plain(cls, value: str) -> str:
        parts = value.split(".")
        if len(parts) != 2 or any(not _COLUMN.fullmatch(part) or len(part) > 45 for part in parts):
            raise ValueError(f"{value!r} is not `schema.name` of lower-case letters, digits and _, 45 each at most")
        return value

    @property
    def schema_name(self) -> str:
        return self.table.partition(".")[0]

    @property
    def name(self) -> str:
        return self.table.partition(".")[2]


class RemovalGuard(SpecModel):
    """What a snapshot may remove."""

    share: float = Field(default=0.3, gt=0, le=1)
    """A file that would remove a greater share of the rows is refused."""
    mark: bool = False
    """Whether rows are marked (`removed_at`) instead of removed."""


class QuarantineSpec(SpecModel):
    """Rows that do not fit go to `<table>__quarantine`, with reason, file and line."""

    max_rows: int = Field(default=0, ge=0)
    """More than so many fail the load."""
    max_share: float = Field(default=1.0, ge=0, le=1)
    """A greater share of the file fails the load."""


class LoadSpec(SpecModel):
    """A table to load."""

    source: Source
    """Where it comes from."""
    file: FileSpec = FileSpec()
    """What landed files hold."""
    target: TargetSpec
    """The table."""
    style: Style = Style.APPEND
    """How a file changes the table."""
    partitions: PartitionsSpec | None = None
    """Windows of time that are pulled one by one, of `database` and `rest` sources which use them."""
    key: tuple[str, ...] = ()
    """Columns of the typed table that tell its rows apart."""
    columns: dict[str, LoadColumn] = {}
    """Columns of the typed table; when empty, those of the first file, as text."""
    raw: bool = False
    """Whether rows are also kept raw, as text, in `<table>__raw`; typed rows then point to theirs (`raw_id`). Where
    each file is the whole, raw rows go with the last row that came from them."""
    partition_by: str | None = None
    """Of style `partition`: `all`, or `year`, `month` or `day` with a column: `month(date_of_sale)`."""
    removal: RemovalGuard = RemovalGuard()
    """Of style `snapshot`, and of `history` with `absent: close`."""
    absent: Literal["keep", "close"] = "keep"
    """Of style `history`: whether the rows that a file lacks stay as they are, or end (`close`)."""
    revised: Literal["add", "replace"] = "add"
    """Of style `append`: whether a file whose name was loaded before, with other content, adds its rows, or replaces
    those of the one before."""
    quarantine: QuarantineSpec = QuarantineSpec()
    drift: DriftPolicy = DriftPolicy.FREEZE
    landing: str = "landing"
    """Name of the store in resources/ which landed files go to."""
    moved_from: str | None = Field(default=None, pattern=r"^\w[\w.-]*(/\w[\w.-]*)+$")
    """Id (`group/name`) that this definition had before its folder was moved: it goes on with the files which landed
    for that."""
    depends: tuple[str, ...] = ()
    """Ids (`group/name`) of tables that come before: their success starts this one."""
    keep_pause: Pause = "23 hours"
    """Least time between two runs by itself."""
    day: DaySpec = DaySpec()
    priority: int = 0
    """Dagster's priority in the run queue."""
    route: str | None = None
    """Pool that it shares with others of its source; one a source when absent."""
    retries: RetrySpec = RetrySpec(attempts=2)
    owners: tuple[str, ...] = ()
    """Owners: told when a load fails."""
    tags: dict[str, str] = {}
    description: str = ""

    @field_validator("columns")
    @classmethod
    def _plain_names(cls, value: dict[str, LoadColumn]) -> dict[str, LoadColumn]:
        for name in value:
            if not _COLUMN.fullmatch(name) or len(name) > 63:
                raise ValueError(f"a column cannot be named {name!r}: lower-case letters, digits and _, 63 at most")
        return value

    @property
    def reserved(self) -> tuple[str, ...]:
        """Names that no column of a file can have in the table, since loading adds such columns in this style."""
        times = ("valid_from", "valid_to") if self.style is Style.HISTORY else ()
        marks = ("removed_at",) if self.style is Style.SNAPSHOT and self.removal.mark else ()
        return (*OWN_COLUMNS, *times, *marks)

    @property
    def by_file(self) -> bool:
        """Whether each file is a partition; of uploads each data set."""
        return self.source.type in ("folder", "s3", "http", "sftp", "upload")

    @property
    def revises(self) -> bool:
        """Whether a file takes the place of an older one of its name."""
        return self.style is Style.APPEND and self.revised == "replace"

    @property
    def one_file(self) -> bool:
        """Whether all pages of an API land as one file, since they are one whole for the style."""
        if not isinstance(self.source, RestSource | WfsSource) or not self.source.has_pages:
            return False
        return self.source.one_file or self.ends_absent or self.style is Style.PARTITION

    @property
    def ends_absent(self) -> bool:
        """Whether the rows that a file lacks go, or end: an older file comes too late."""
        closes = self.style is Style.HISTORY and self.absent == "close"
        return self.style in WHOLE or closes or self.partition_by == "all"

    @property
    def _pages_may_be_json(self) -> bool:
        if isinstance(self.source, WfsSource) and "json" not in self.source.output_format.lower():
            return False
        return self.file.format in ("auto", "json")

    @property
    def pause(self) -> timedelta:
        """`keep_pause` as a length."""
        return pause_length(self.keep_pause)

    @property
    def upstream(self) -> tuple[str, ...]:
        """Ids of all that comes before: `depends`, and the table of a `table` source."""
        own = (self.source.table,) if isinstance(self.source, TableSource) else ()
        return tuple(dict.fromkeys((*own, *self.depends)))

    @model_validator(mode="after")
    def _consistent(self) -> LoadSpec:
        if self.partitions and self.source.type not in ("database", "rest"):
            raise ValueError("`partitions` are for `database` and `rest` sources")
        if self.style in (Style.UPSERT, Style.HISTORY) and not self.key:
            raise ValueError(f"style {self.style.value} needs `key`")
        if (self.style is Style.PARTITION) != (self.partition_by is not None):
            raise ValueError("`partition_by` and `style: partition` go together")
        if self.partition_by and not re.fullmatch(r"all|(year|month|day)\([a-z_][a-z0-9_]*\)", self.partition_by):
            raise ValueError(f"partition_by {self.partition_by!r}; write `all` or `month(column)`")
        if isinstance(self.source, DatabaseSource | TableSource | TableApiSource):
            said = self.file.model_dump(
                exclude={"null_words", "trim", "max_columns", "max_line_bytes", "max_expansion"}
            )
            if any(value != getattr(FileSpec(), name) for name, value in said.items()):
                raise ValueError("the rows of a database need no `file`; only null_words and trim may be set")
        if self.one_file and not self._pages_may_be_json:
            raise ValueError(f"all pages are one file, by style {self.style.value} or `one_file`: they must be JSON")
        self._keeps_what_it_had()
        if isinstance(self.source, UploadSource) and (self.style is not Style.REPLACE or self.raw or self.key):
            raise ValueError("uploads have `style: replace`, without `key` and `raw`")
        if unknown := [name for name in self.key if self.columns and name not in self.columns]:
            raise ValueError(f"key columns {unknown} are not among the columns")
        if taken := [name for name in (*self.columns, *self.key) if name in self.reserved]:
            own = ", ".join(self.reserved)
            raise ValueError(f"a column cannot be named {taken[0]!r}: in this style loading adds {own}")
        return self

    def _keeps_what_it_had(self) -> None:
        """A part of the rows must not take the place of all of them. (Windows that are shorter than the periods which
        they replace: specs/load_loader.py, which knows when they begin.)"""
        if isinstance(self.source, DatabaseSource) and self.source.mode != "full":
            # All pulls have the same name.
            revised = " with `revised: replace`" if self.revises else ""
            if self.ends_absent or self.style is Style.PARTITION or revised:
                raise ValueError(
                    f"mode {self.source.mode} pulls new rows only, which in style {self.style.value}{revised} would "
                    "take the place of those that are there: use plain append, upsert or history, or mode full"
                )
        elif self.partitions and self.ends_absent:
            raise ValueError(
                f"of style {self.style.value} each window would take the place of the others: use style partition"
            )


class LoadDefinition(SpecModel):
    """A table to load, as it was found."""

    name: str
    """Name of the folder."""
    group: str
    """Folders above it below assets/, joined by `/`."""
    folder: Path
    spec: LoadSpec
    select_sql: str | None = None
    """Text of select.sql, of a `database` source."""
    migrations: tuple[tuple[str, str], ...] = ()
    """Name and text of each `ver/NNN_*.sql`, in order."""
    version: str = ""
    """SHA-256 over the folder's files."""

    @property
    def id(self) -> str:
        """`group/name`: unique in a project."""
        return f"{self.group}/{self.name}"

    @property
    def landed_as(self) -> str:
        """Id under which its files have landed: its own, or the one that it was moved from."""
        return self.spec.moved_from or self.id
