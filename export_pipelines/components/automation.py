"""What the documents of schedules/ may say, as frozen pydantic models."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, field_validator, model_validator

from export_pipelines.components.resources import FromEnvironment
from export_pipelines.components.tidying import HISTORY_DAYS, LOG_DAYS
from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.sizes import parse_size
from export_pipelines.specs.zones import Zone


def valid_cron(value: str) -> str:
    """The cron expression. Raises ValueError if it is none."""
    from dagster._utils.schedules import is_valid_cron_schedule

    if not is_valid_cron_schedule(value):
        raise ValueError(f"{value!r} is no cron expression of five fields")
    return value


class Stage(StrEnum):
    """What a run does with a partition."""

    EXPORT = "export"
    ARCHIVE = "archive"
    CLEANUP = "cleanup"
    CHAIN = "chain"
    """All three, one after the other, in one run."""


class DefaultStatus(StrEnum):
    """Whether it is on when it is first seen; the UI's switch decides afterwards."""

    RUNNING = "running"
    STOPPED = "stopped"


class AutomationSpec(SpecModel):
    """What each document of schedules/ has."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    """Name in Dagster; letters, digits and `_`."""
    tables: tuple[str, ...] = ("*",)
    """Ids of tables (`group/table`) or patterns (`knowledge_base/*`)."""
    default_status: DefaultStatus = DefaultStatus.STOPPED
    """`running` or `stopped` when it is first seen; the UI's switch decides afterwards."""
    description: str = ""
    """Shown in Dagster."""


class ExportScheduleSpec(AutomationSpec):
    """Runs by the clock: each partition after it has closed, or a cron of your own."""

    stage: Stage = Stage.EXPORT
    """`export`, `archive`, `cleanup`, or `chain` (all three in one run)."""
    cron: str | None = None
    """When to look for partitions that have closed since the last time. Absent: as each partition closes."""
    timezone: Zone = "UTC"
    """Zone of `cron`; without `cron`, the tables' own zones count."""
    offset_minutes: int = Field(default=0, ge=0, le=7 * 24 * 60)
    """Minutes to wait after a partition has closed, for rows that come late."""

    @field_validator("cron")
    @classmethod
    def _valid_cron(cls, value: str | None) -> str | None:
        return value if value is None else valid_cron(value)


class ClockSpec(AutomationSpec):
    """What each document has whose work is done by the clock."""

    cron: str
    """When."""
    timezone: Zone = "UTC"
    """Zone of `cron`."""

    @field_validator("cron")
    @classmethod
    def _valid_cron(cls, value: str) -> str:
        return valid_cron(value)


class ExpireScheduleSpec(ClockSpec):
    """Gives up the archived files that `retention` does not want, of each table that has one, by the clock."""

    cron: str = "0 5 * * *"
    """When."""


class DrillScheduleSpec(ClockSpec):
    """Restore drills by the clock: a random archived partition of each table is restored and compared."""

    cron: str = "0 4 * * 0"
    """When."""
    connection: str | None = None
    """Name of the connection in whose database the rows are restored, into a temporary table; when absent, that of each
    table. Its role needs TEMPORARY on the database, and the types of the columns must exist there."""
    max_megabytes: int = Field(default=1000, ge=1)
    """Greatest size of a partition that is taken, in megabytes (10**6 bytes) before compression."""
    tables_at_once: int | None = Field(default=None, ge=1)
    """How many of the tables are drilled at a time, chosen at random; all when absent."""


class VerifyScheduleSpec(ClockSpec):
    """Verifies archives by the clock, as much at a time as a budget allows: the asset check `verified`.

    All its tables share the budget. Files that were never verified come first, then those of longest ago.
    """

    cron: str = "0 3 * * *"
    """When."""
    budget: str = "10GB"
    """Bytes of files that are read at most each time: `500MB`, `10GB`, `2TB`. Chains are always read whole."""
    minutes: float = Field(default=60, gt=0)
    """Minutes that it may take at most. A file that is not done by then is broken off, and stays due."""
    jobs: int = Field(default=1, ge=1)
    """Processes at work."""

    @field_validator("budget")
    @classmethod
    def _is_a_size(cls, value: str) -> str:
        parse_size(value)
        return value


class TidyScheduleSpec(ClockSpec):
    """Keeps Dagster's storage from growing for ever, by the clock: logs of old runs go, and then the runs.

    Nothing that was materialized, observed or checked last is forgotten, so that no partition looks missing.
    """

    cron: str = "30 1 * * *"
    """When."""
    log_days: int = Field(default=LOG_DAYS, ge=1)
    """Days that the logs of a run are kept after its end."""
    history_days: int = Field(default=HISTORY_DAYS, ge=1)
    """Days that a run is kept after its end, if nothing needs it any more."""

    @model_validator(mode="after")
    def _logs_first(self) -> TidyScheduleSpec:
        if self.history_days < self.log_days:
            raise ValueError("history_days is less than log_days: runs would go before their logs")
        return self


class SensorSpec(AutomationSpec):
    """What each sensor has."""

    interval_seconds: int = Field(default=10, ge=1)
    """Seconds between two looks."""


class UpstreamSensorSpec(SensorSpec):
    """After an upstream job or asset succeeds, here or in another code location, export the partition it made."""

    job: str | None = None
    """Name of the upstream job."""
    asset: str | None = None
    """Key of the upstream asset, `a/b`. Give this, the job, or both."""
    location: str | None = None
    """Code location of the job; any when absent."""
    stage: Stage = Stage.EXPORT
    """`export`, or `chain` for all three steps in one run."""

    @model_validator(mode="after")
    def _something_upstream(self) -> UpstreamSensorSpec:
        if not self.job and not self.asset:
            raise ValueError("give the upstream `job`, `asset`, or both")
        if self.location and not self.job:
            raise ValueError("location belongs to a `job`; an asset's key is the same in all locations")
        return self


class ChainSensorSpec(SensorSpec):
    """After export, archive; after archive, cleanup where the table says `after_archive`. Each a run of its own."""

    compare: bool = False
    """Whether tables whose cleanup is `off` get their comparison run after each archive (the shadow mode)."""
    default_status: DefaultStatus = DefaultStatus.RUNNING


class DueCleanupSensorSpec(SensorSpec):
    """Cleans up the partitions whose `keep_days` are over, as the catalog knows them."""

    interval_seconds: int = Field(default=300, ge=1)
    default_status: DefaultStatus = DefaultStatus.RUNNING


class LoadSensorSpec(SensorSpec):
    """Lands and loads by itself: what has waited for its `keep_pause`, and what others have made. It keeps to the
    tables' windows of the day, priorities and routes, and passes over what is paused."""

    interval_seconds: int = Field(default=30, ge=1)
    failures: int = Field(default=3, ge=1)
    """After so many failures in a row a table waits for its `keep_pause`, as after a success."""
    failure_pause_minutes: float = Field(default=10, ge=0)
    """Minutes between a failure and the next attempt until then."""
    default_status: DefaultStatus = DefaultStatus.RUNNING


class FailureNoticeSpec(SensorSpec):
    """Tells people of failed runs, refused cleanups, late rows and missed schedules: once a cause."""

    interval_seconds: int = Field(default=30, ge=1)
    webhook_url: FromEnvironment | None = None
    """Gets a JSON object by POST: `title`, `text`, `hint`, `link`, `table`, `run_id`."""
    email_to: tuple[str, ...] = ()
    """Addresses."""
    email_owners: bool = False
    """Whether the owners of a table to load (those that are e-mail addresses) are told of its failures, too."""
    email_from: str = "export-pipelines@localhost"
    """Sender."""
    smtp_host: FromEnvironment | str = "localhost"
    """Mail server."""
    smtp_port: int = Field(default=25, ge=1, le=65535)
    smtp_security: Literal["none", "starttls", "tls"] = "none"
    """`none`, `starttls` (as a rule port 587) or `tls` (port 465)."""
    smtp_user: FromEnvironment | None = None
    smtp_password: FromEnvironment | None = None
    ui_url: FromEnvironment | str = "http://localhost:3000"
    """Address of Dagster's UI, for the link."""
    repeat_hours: float = Field(default=24, gt=0)
    """The same cause is told again after so long."""

    @model_validator(mode="after")
    def _somewhere(self) -> FailureNoticeSpec:
        if not self.email_to and not self.webhook_url and not self.email_owners:
            raise ValueError("give email_to, webhook_url, or both")
        return self
