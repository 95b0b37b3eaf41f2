"""What `assets/<group>/<table>/defs.yaml` may say, as frozen pydantic models.

Reading files, line numbers and the scan of the folders are in `loader.py`; these models only say what is valid.
Every field has the default that a user would expect, and a description that the reference is generated from.
"""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from export_pipelines.specs.dataset import DataSetOptions
from export_pipelines.specs.dump import DumpSpec
from export_pipelines.specs.encryption import EncryptionSpec
from export_pipelines.specs.format import Compression, CsvSpec, FormatSpec
from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.retries import RetrySpec
from export_pipelines.specs.zones import Zone

__all__ = [
    "Cadence",
    "CleanupMode",
    "CleanupSpec",
    "Compression",
    "CsvSpec",
    "FormatSpec",
    "OnlyCopies",
    "PartitionsSpec",
    "RetentionSpec",
    "RetrySpec",
    "TableDefinition",
    "TableSpec",
]


class Cadence(StrEnum):
    """The usual lengths of a partition."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class PartitionsSpec(SpecModel):
    """How a table is cut into partitions by time. Exactly one of every, cron, every_hours, every_days."""

    every: Cadence | None = None
    """`hour`, `day`, `week` or `month`."""
    cron: str | None = None
    """Any five-field cron expression; each tick ends one partition and starts the next."""
    every_hours: int | None = Field(default=None, ge=1)
    """Every N hours, counted from `start`."""
    every_days: int | None = Field(default=None, ge=1)
    """Every N days, counted from `start`."""
    start: datetime
    """Start of the first partition, as a local time in `timezone`."""
    end: datetime | None = None
    """End of the last partition (exclusive); open when absent."""
    timezone: Zone = "UTC"
    """IANA name of the zone in which days begin, e.g. `America/New_York`."""
    single_run: bool = True
    """Whether a backfill over many partitions is one run (quick) or one run a partition."""

    @field_validator("start", "end", mode="before")
    @classmethod
    def _date_is_midnight(cls, value: object) -> object:
        return f"{value}T00:00:00" if re.fullmatch(r"\d{4}-\d\d-\d\d", str(value)) else value

    @model_validator(mode="after")
    def _one_cadence(self) -> PartitionsSpec:
        given = [n for n in ("every", "cron", "every_hours", "every_days") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of every, cron, every_hours, every_days; found {given or 'none'}")
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and value.tzinfo is not None:
                raise ValueError(f"{name} is a local time in `timezone`; leave out its offset")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end {self.end} is not after start {self.start}")
        return self


class CleanupMode(StrEnum):
    """When source rows are deleted."""

    OFF = "off"
    """Never. The comparison (late rows, disagreement) still runs: the shadow mode beside an older system."""
    AFTER_ARCHIVE = "after_archive"
    """As soon as the archive of the partition is verified."""
    KEEP = "keep"
    """`keep_days` after the end of the partition."""


class CleanupSpec(SpecModel):
    """Deleting source rows that are proved to be archived."""

    mode: CleanupMode = CleanupMode.OFF
    """`off`, `after_archive`, or `keep` (then `keep_days` says for how long)."""
    keep_days: int = Field(default=0, ge=0)
    """Days that rows stay in the source after the end of their partition."""
    batch_rows: int = Field(default=50_000, ge=1, le=1_000_000)
    """Greatest number of rows deleted by one transaction; also the size of the buckets of identities."""
    connection: str | None = None
    """Name of the connection in resources/ whose role may delete. When absent, the one that exports."""
    acknowledge: tuple[str, ...] = ()
    """Names of delete triggers, rules and foreign keys with ON DELETE actions that a cleanup may set off."""

    @model_validator(mode="before")
    @classmethod
    def _mode_alone(cls, value: object) -> object:
        # YAML 1.1 reads a bare `off` as false.
        if value is False or value == "off":
            return {"mode": "off"}
        if isinstance(value, str):
            return {"mode": value}
        if isinstance(value, dict) and value.get("mode") is False:
            return {**value, "mode": "off"}
        return value

    @model_validator(mode="after")
    def _keep_days_with_keep(self) -> CleanupSpec:
        if (self.mode is CleanupMode.KEEP) != (self.keep_days > 0):
            raise ValueError("keep_days and `mode: keep` go together")
        return self


class OnlyCopies(StrEnum):
    """What retention does with a file that has the only copy of some rows."""

    KEEP = "keep"
    """They stay, whatever the other settings say."""
    GIVE_UP = "give_up_for_good"
    """They go as the other settings say: their rows are then nowhere any more."""


class RetentionSpec(SpecModel):
    """Which archived files stay; `export-pipelines expire` gives up the others. A file stays while any of `keep`,
    `newest` or a class wants it.

    A file has the *only copy* of rows when a cleanup deleted some of its rows from the source, when it is the newest of
    its partition, or when it was adopted. Of whole snapshots the newest always stays, and is not counted as one.
    """

    keep: str | None = None
    """By age: `90 days`, `8 weeks`, `18 months`, `7 years`. It counts from the end of the partition, of a snapshot from
    its export."""
    newest: int | None = Field(default=None, ge=1)
    """By count: the newest partitions, of whole snapshots the newest files."""
    daily: int | None = Field(default=None, ge=1)
    """Whole snapshots only: the last one of a day, of so many days that have one."""
    weekly: int | None = Field(default=None, ge=1)
    """Whole snapshots only: the last one of a week (from Monday), of so many weeks that have one."""
    monthly: int | None = Field(default=None, ge=1)
    """Whole snapshots only: the last one of a month, of so many months that have one."""
    yearly: int | None = Field(default=None, ge=1)
    """Whole snapshots only: the last one of a year, of so many years that have one."""
    timezone: Zone = "UTC"
    """IANA name of the zone in which days, weeks, months and years begin."""
    only_copies: OnlyCopies = OnlyCopies.KEEP
    """`keep`: a file with the only copy of rows stays, whatever the rest says. `give_up_for_good`: it goes like any
    other, and its rows are then nowhere any more."""

    @field_validator("keep")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[1-9]\d{0,4} (day|week|month|year)s?", value):
            raise ValueError(f"{value!r} is no age; write `90 days`, `8 weeks`, `18 months` or `7 years`")
        return value

    @model_validator(mode="after")
    def _something_wanted(self) -> RetentionSpec:
        if self.keep is None and self.newest is None and not self.classes:
            raise ValueError("nothing says what stays; give keep, newest, daily, weekly, monthly or yearly")
        return self

    @property
    def classes(self) -> dict[str, int]:
        """The classes that are asked for, each with its number of periods."""
        found = {name: getattr(self, name) for name in ("daily", "weekly", "monthly", "yearly")}
        return {name: number for name, number in found.items() if number is not None}


class TableSpec(SpecModel):
    """A table to export. `table` alone derives both statements; otherwise select.sql (and delete.sql) lie beside."""

    table: str | None = None
    """`schema.name` (quote as in SQL) of the source table. Derives both statements when there is no select.sql."""
    time_column: str | None = None
    """Column that decides the partition of a row; needed with `table` and `partitions`."""
    partitions: PartitionsSpec | None = None
    """How the table is cut by time; absent for a snapshot of the whole table."""
    cumulative: bool | None = None
    """Whether a partition holds everything before its end that is not yet archived. Found out from select.sql:
    true when it uses neither window_start nor partition_key."""
    connection: str = "source"
    """Name of the connection in resources/: to PostgreSQL, MySQL or MariaDB."""
    store: str = "exports"
    """Name of the store in resources/ which the export writes to."""
    archive: str = "archive"
    """Name of the store in resources/ for the long-term copies."""
    format: FormatSpec = FormatSpec()
    """File format and its options."""
    compression: Compression = Compression.GZIP
    """`gzip`, `zstd` or `none`."""
    encryption: EncryptionSpec | None = None
    """To whom the files are encrypted. When absent, what the store of the exports says, or else that of the archive."""
    file_name: str = "{group}/{table}/{table}-{partition}"
    """Template of the file's name without its extension. Fields: group, table, partition, window_start,
    window_end (both with a strftime format after a colon), generation."""
    keep_export: bool = True
    """Whether the local copy stays once the archive has it."""
    key: tuple[str, ...] = ()
    """Columns that identify a row; the primary key when absent. Proves rows where identities cannot ride along."""
    exclude_columns: tuple[str, ...] = ()
    """Columns to leave out (derived statements only)."""
    mask_columns: dict[str, str] = {}
    """Columns to replace: name → SQL expression, e.g. `email: md5(email)` (derived statements only)."""
    preview_rows: int = Field(default=5, ge=0, le=100)
    """How many rows of each export are shown in Dagster, whose event log keeps them; 0 shows none."""
    cleanup: CleanupSpec = CleanupSpec()
    """Deleting source rows that are proved to be archived."""
    retention: RetentionSpec | None = None
    """Which archived files stay. Absent: all, for ever."""
    on_demand: DataSetOptions | None = None
    """That people may ask for rows of it by HTTP, and how; see `export_pipelines.DataSet`. Absent: nobody may."""
    dump: DumpSpec = DumpSpec()
    """How `export-pipelines dump` dumps any range of it, and in which table of reports its files are entered."""
    session_timezone: str = "UTC"
    """TimeZone of the session: how timestamptz values print, and how a parameter compares to a timestamp without
    a zone."""
    statement_timeout: str = "0"
    """PostgreSQL's statement_timeout, e.g. `10min`; `0` is none."""
    lock_timeout: str = "30s"
    """PostgreSQL's lock_timeout."""
    retries: RetrySpec = RetrySpec()
    """Retries after transient errors."""
    owners: tuple[str, ...] = ()
    """Owners shown in Dagster: e-mail addresses or `team:name`."""
    tags: dict[str, str] = {}
    """Tags of the assets."""
    description: str = ""
    """What the table is; shown in Dagster above the SQL."""
    freshness_hours: float | None = Field(default=None, gt=0)
    """Dagster's freshness policy: warn when the last export is older."""
    pool: str | None = None
    """Dagster concurrency pool of the steps; one a connection when absent."""
    depends_on: tuple[str, ...] = ()
    """Asset keys (`a/b`) which the source table stands for, e.g. an ingest of another code location."""

    @model_validator(mode="after")
    def _consistent(self) -> TableSpec:
        if self.table and self.partitions and not self.time_column:
            raise ValueError("time_column is missing: with `table` and `partitions` it decides a row's partition")
        if self.time_column and not self.table:
            raise ValueError("time_column needs `table`")
        if (self.exclude_columns or self.mask_columns) and not self.table:
            raise ValueError("exclude_columns and mask_columns work on `table`; in a select.sql, write them there")
        if self.partitions and self.retention and (named := list(self.retention.classes)):
            raise ValueError(
                f"{', '.join(named)} in retention are for whole snapshots; here each file has rows that no other has: "
                "use keep or newest"
            )
        if problem := self._format_problem():
            raise ValueError(problem)
        if both := set(self.exclude_columns) & set(self.mask_columns):
            raise ValueError(f"columns {sorted(both)} are both excluded and masked")
        if problem := self.dump.problem(partitioned=self.partitions is not None, keep_export=self.keep_export):
            raise ValueError(problem)
        return self

    def _format_problem(self) -> str:
        if self.cleanup.mode is not CleanupMode.OFF and (lossy := self.format.lossy):
            return (
                f"the format changes values ({', '.join(lossy)}), so the files are no proof of the rows that the "
                "cleanup would delete; convert to text instead, or set `cleanup: off`"
            )
        if self.format.packed and "compression" in self.model_fields_set and self.compression is not Compression.NONE:
            return f"{self.format.type} is compressed within; leave out compression"
        return ""

    @property
    def packing(self) -> Compression:
        """The compression of the files as wholes: none of formats that are compressed within."""
        return Compression.NONE if self.format.packed else self.compression


class TableDefinition(SpecModel):
    """A table as it was found: its spec, and where it comes from. What the steps work with."""

    name: str
    """Name of the folder."""
    group: str
    """Folders above it below assets/, joined by `/`; `exports` for a folder of DSL_PATH."""
    folder: Path
    spec: TableSpec
    select_sql: str | None = None
    """Text of select.sql as it stands, None when derived."""
    delete_sql: str | None = None
    """Text of delete.sql as it stands, None when derived or absent."""
    version: str = ""
    """SHA-256 over the folder's definition files: changes whenever the definition does."""
    engine: Literal["postgresql", "mysql"] = "postgresql"
    """The kind of database that its connection leads to, `mysql` for MariaDB, too; decides the dialect of its SQL."""

    @property
    def id(self) -> str:
        """`group/name`: unique in a project; the name of its folder in the archive."""
        return f"{self.group}/{self.name}"
