"""What a defs.yaml of type `export_pipelines.Transform` may say: SQL in a target database, whose result is an asset."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from export_pipelines.specs.load import TargetSpec
from export_pipelines.specs.load_times import DaySpec, Pause, pause_length
from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.retries import RetrySpec


class TransformTarget(TargetSpec):
    """Where it runs, and what it makes."""

    table: str = ""
    """`schema.name` of the table or view that is made. Not of `materialize: statements`."""


class TransformSpec(SpecModel):
    """SQL that makes a table or a view out of others: `transform.sql` beside the defs.yaml."""

    materialize: Literal["table", "view", "statements"] = "table"
    """`table`: the rows of the one SELECT of transform.sql are built beside, and swapped behind the stable view
    `target.table`, as loads do. `view`: the SELECT is that view. `statements`: any statements are run, one after the
    other, in one transaction."""
    target: TransformTarget = TransformTarget()
    key: tuple[str, ...] = ()
    """Of `table`: columns that tell its rows apart. Rows that come twice fail it."""
    depends: tuple[str, ...] = ()
    """Ids (`group/name`) of more that comes before. What transform.sql reads is known without."""
    settings: dict[str, str] = {}
    """Settings of its session: `work_mem: 256MB`."""
    statement_timeout: str = "0"
    """PostgreSQL's statement_timeout, e.g. `10min`; `0` is none."""
    lock_timeout: str = "30s"
    """PostgreSQL's lock_timeout."""
    cron: str | None = None
    """When it runs by itself, in the zone of `day`. Absent: whenever what comes before has changed."""
    keep_pause: Pause = "0 minutes"
    """Least time between two runs by itself."""
    day: DaySpec = DaySpec()
    priority: int = 0
    """Dagster's priority in the run queue."""
    route: str | None = Field(default=None, pattern=r"^\S+$")
    """Pool that it shares with others; that of its connection when absent."""
    retries: RetrySpec = RetrySpec(attempts=2)
    owners: tuple[str, ...] = ()
    """Owners: told when it fails."""
    tags: dict[str, str] = {}
    description: str = ""

    @property
    def pause(self) -> timedelta:
        """`keep_pause` as a length."""
        return pause_length(self.keep_pause)

    @model_validator(mode="after")
    def _consistent(self) -> TransformSpec:
        named = bool(self.target.table)
        if named == (self.materialize == "statements"):
            raise ValueError(
                "`target: {table: …}` names what is made, and `statements` make what they say"
                if named
                else f"`materialize: {self.materialize}` needs `target: {{table: schema.name}}`"
            )
        if self.key and self.materialize != "table":
            raise ValueError("`key` is for `materialize: table`")
        if self.target.published and self.materialize != "table":
            raise ValueError("the read API serves tables only: `published` is for `materialize: table`")
        if self.target.grants and not named:
            raise ValueError("`statements` grant what they make themselves: leave out `grants`")
        return self


class TransformDefinition(SpecModel):
    """A transform, as it was found."""

    name: str
    """Name of the folder."""
    group: str
    """Folders above it below assets/, joined by `/`."""
    folder: Path
    spec: TransformSpec
    sql: str
    """Text of transform.sql."""
    version: str = ""
    """SHA-256 over the folder's files."""

    @property
    def id(self) -> str:
        """`group/name`: unique in a project."""
        return f"{self.group}/{self.name}"

    @property
    def file(self) -> Path:
        """Its transform.sql."""
        return self.folder / "transform.sql"
