"""What a data set's defs.yaml may say: rows that people ask for, with the columns and filters that they may ask by.

A data set has a folder of its own (`type: export_pipelines.DataSet`, with a select.sql, a `table` or an `index`), or is
a table that says `on_demand:`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from export_pipelines.specs.encryption import EncryptionSpec
from export_pipelines.specs.format import Compression, FormatName
from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.retries import RetrySpec
from export_pipelines.specs.zones import Zone

ROW_LIMIT = 80_000
"""Rows of a request at most, where a data set says nothing."""


class FilterType(StrEnum):
    """What a filter's value is."""

    TEXT = "text"
    INTEGER = "integer"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    DATE = "date"
    TIMESTAMP = "timestamp"
    """With an offset or without; without one it is local to the data set's `timezone`."""
    UUID = "uuid"


class Operator(StrEnum):
    """How a filter compares. In a URL `name__ge=10` (plain `name=10` is `eq`); in a shell `name>=10`."""

    EQ = "eq"
    NE = "ne"
    LT = "lt"
    LE = "le"
    GT = "gt"
    GE = "ge"
    IN = "in"
    """Any of several values, parted by commas."""
    CONTAINS = "contains"
    """Text that holds the value, case counts; `%` and `_` mean themselves."""
    STARTS_WITH = "starts_with"
    IS_NULL = "is_null"
    """`true` or `false`."""


_ORDERED = (Operator.EQ, Operator.NE, Operator.LT, Operator.LE, Operator.GT, Operator.GE, Operator.IN, Operator.IS_NULL)
OPERATORS: dict[FilterType, tuple[Operator, ...]] = {
    FilterType.TEXT: (*_ORDERED, Operator.CONTAINS, Operator.STARTS_WITH),
    FilterType.INTEGER: _ORDERED,
    FilterType.DECIMAL: _ORDERED,
    FilterType.BOOLEAN: (Operator.EQ, Operator.IS_NULL),
    FilterType.DATE: _ORDERED,
    FilterType.TIMESTAMP: _ORDERED,
    FilterType.UUID: (Operator.EQ, Operator.NE, Operator.IN, Operator.IS_NULL),
}
"""The operators that fit a type: those that are allowed where a filter names none."""


class FilterSpec(SpecModel):
    """A filter that may be asked by."""

    type: FilterType = FilterType.TEXT
    """`text`, `integer`, `decimal`, `boolean`, `date`, `timestamp` or `uuid`."""
    column: str | None = None
    """Column that it compares; the one of the filter's own name when absent."""
    operators: tuple[Operator, ...] = ()
    """Allowed ones; all that fit the type when absent."""
    required: bool = False
    """Whether no request may leave it out."""
    values: tuple[str, ...] = ()
    """Values that may be asked for; any when absent. The page offers them as a list."""
    description: str = ""
    """Told in the page and by the API."""

    @model_validator(mode="after")
    def _fitting(self) -> FilterSpec:
        if wrong := [each.value for each in self.operators if each not in OPERATORS[self.type]]:
            raise ValueError(f"operators {wrong} do not fit the type {self.type.value}")
        return self

    @property
    def allowed(self) -> tuple[Operator, ...]:
        """The operators that may be used."""
        return self.operators or OPERATORS[self.type]


class WidenSpec(SpecModel):
    """A JSON or key/value column that becomes columns on the way out: more than a table of PostgreSQL may have."""

    column: str
    """Name of the column, which itself is left out."""
    keys: tuple[str, ...] | Literal["discover"]
    """The keys, in the order of their columns; or `discover`, those that occur in the snapshot, sorted."""
    prefix: str = ""
    """Before each key in the name of its column."""
    max_columns: int = Field(default=16_000, ge=1)
    """More discovered keys than this fail the request."""
    others: Literal["error", "drop"] = "error"
    """What of keys that are not among `keys`: the request fails, or they are left out."""


class Mail(StrEnum):
    """Whether the end of a request is told by mail."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    OFF = "off"


class Links(StrEnum):
    """Who may download."""

    SIGNED = "signed"
    """By a signed link that expires, or logged in."""
    PUBLIC = "public"
    """Whoever has the link, as long as the file is there."""


class DataSetOptions(SpecModel):
    """What may be asked of a data set, and by whom: `on_demand:` of a table, or part of a data set's own file."""

    title: str = ""
    """For the page; the folder's name when absent."""
    columns: tuple[str, ...] = ()
    """Columns that may be asked for, in this order; all when absent."""
    column_descriptions: dict[str, str] = {}
    """What columns mean; shown in the page and written into Parquet files."""
    filters: dict[str, FilterSpec] = {}
    """Filters by name. None may be asked by that is not listed."""
    order_by: tuple[str, ...] = ()
    """Columns that rows are sorted by; with none the order is the database's."""
    row_limit: int = Field(default=ROW_LIMIT, ge=1)
    """Rows of a request at most: more is refused before the work by an estimate, and during it."""
    formats: tuple[FormatName, ...] = (FormatName.CSV, FormatName.JSON, FormatName.JSONL, FormatName.PARQUET)
    """Formats that may be asked for; the first is the default."""
    compressions: tuple[Compression, ...] = (Compression.NONE, Compression.GZIP, Compression.ZSTD)
    """Compressions that may be asked for; the first is the default."""
    conversions: dict[str, str] = {}
    """As `conversions` of a table's format: column → how a value that a format cannot hold is written. Excel checks
    those that are not named: a value that it cannot hold exactly fails the request."""
    neutralise_formulas: bool = True
    """Whether cells of CSV that a spreadsheet would take for a formula get an apostrophe in front. A request may say
    otherwise."""
    widen: WidenSpec | None = None
    """A JSON column that becomes columns."""
    who: tuple[str, ...] = ("*",)
    """Who may ask: user names, `group:name` of an OIDC login or a token, or `*` for everybody with the scope."""
    freshness_minutes: float = Field(default=10, ge=0)
    """For so long the same question is answered by the same file."""
    version_of: str | None = None
    """Asset key (`a/b/c`) whose latest materialisation is the data version; then `freshness_minutes` does not count."""
    keep_hours: float = Field(default=72, gt=0)
    """Hours that a file stays after it was made."""
    mail: Mail = Mail.OPTIONAL
    """Whether the end is told by mail: `required`, `optional` or `off`."""
    links: Links = Links.SIGNED
    """`signed` links that expire, or `public` ones."""
    timezone: Zone = "UTC"
    """Zone of timestamps that a filter gives without an offset, and of the session that reads."""
    statement_timeout: str = "10min"
    """PostgreSQL's statement_timeout."""

    @field_validator("columns", "order_by")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a column stands there twice")
        return value

    @field_validator("filters")
    @classmethod
    def _plain_names(cls, value: dict[str, FilterSpec]) -> dict[str, FilterSpec]:
        reserved = {
            *("fileType", "format", "compression", "columns", "limit", "environment", "email", "webhook"),
            *("delimiter", "bom", "neutralise_formulas"),
        }
        for name in value:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or "__" in name or name in reserved:
                raise ValueError(f"a filter cannot be named {name!r}: it stands in URLs; letters, digits and single _")
        return value

    @model_validator(mode="after")
    def _some_format(self) -> DataSetOptions:
        if not self.formats or not self.compressions:
            raise ValueError("formats and compressions need at least one entry each")
        return self


class DataSetSpec(DataSetOptions):
    """A data set of its own."""

    description: str = ""
    """What it is; shown in the page and in Dagster."""
    connection: str = "source"
    """Name of the connection in resources/: PostgreSQL, MySQL or MariaDB, or an OpenSearch."""
    table: str | None = None
    """`schema.name` (quote as in SQL): all its columns. Instead of a select.sql."""
    exclude_columns: tuple[str, ...] = ()
    """Columns of the `table` to leave out: nobody may ask for them or filter by them."""
    mask_columns: dict[str, str] = {}
    """Columns of the `table` to replace: name → SQL expression, e.g. `email: md5(email)`."""
    index: str | None = None
    """Name of an index, an alias or a pattern of an OpenSearch connection."""
    fields: dict[str, str] = {}
    """Of an index: type of each field that is exported, as its mapping names types; from the mapping when empty."""
    encryption: EncryptionSpec | None = None
    """To whom files are encrypted besides the service itself."""
    owners: tuple[str, ...] = ()
    """Owners shown in Dagster: e-mail addresses or `team:name`."""
    tags: dict[str, str] = {}
    """Tags of the asset."""
    retries: RetrySpec = RetrySpec(attempts=3)
    """Retries of a request that failed."""
    depends_on: tuple[str, ...] = ()
    """Asset keys (`a/b`) that it comes from."""

    @model_validator(mode="after")
    def _one_origin(self) -> DataSetSpec:
        if self.table and self.index:
            raise ValueError("give `table` or `index`, or a select.sql beside this file, not both")
        if self.fields and not self.index:
            raise ValueError("fields are of an `index`; in SQL, write the types into select.sql")
        if (self.exclude_columns or self.mask_columns) and not self.table:
            raise ValueError("exclude_columns and mask_columns work on `table`; in a select.sql, write them there")
        if both := set(self.exclude_columns) & set(self.mask_columns):
            raise ValueError(f"columns {sorted(both)} are both excluded and masked")
        return self


class DataSetDefinition(SpecModel):
    """A data set as it was found."""

    name: str
    """Name of the folder."""
    group: str
    """Folders above it below assets/, joined by `/`."""
    folder: Path
    spec: DataSetSpec
    select_sql: str | None = None
    """Text of select.sql; None for a `table` or an `index`."""
    version: str = ""
    """SHA-256 over the files that define it."""
    engine: Literal["postgresql", "mysql", "opensearch"] = "postgresql"
    """What its connection leads to."""

    @property
    def id(self) -> str:
        """`group/name`: unique among tables and data sets, a table's own where that says `on_demand`."""
        return f"{self.group}/{self.name}"

    @property
    def title(self) -> str:
        """For people."""
        return self.spec.title or self.name.replace("_", " ")
