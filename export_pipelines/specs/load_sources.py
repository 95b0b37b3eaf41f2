"""Where the files and rows of a table to load come from: `source` of its defs.yaml."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.service import FromVariable, Text


class AuthSpec(SpecModel):
    """How a source knows us. Secrets come from the environment."""

    type: Literal["none", "basic", "bearer", "header"] = "none"
    user: Text | None = None
    """Of `basic`."""
    password: FromVariable | None = None
    """Of `basic`."""
    token: FromVariable | None = None
    """Of `bearer`; of `header` its value."""
    header: str = "Authorization"
    """Name of the header of `header`."""


class HttpOptions(SpecModel):
    """What all sources over HTTP have."""

    headers: dict[str, Text] = {}
    """More headers."""
    auth: AuthSpec = AuthSpec()
    """How the source knows us."""
    connect_timeout: float = Field(default=10, gt=0)
    """Seconds."""
    read_timeout: float = Field(default=60, gt=0)
    """Seconds of silence."""
    attempts: int = Field(default=5, ge=1, le=20)
    """Tries of one call: 429, 500, 502, 503, 504 and lost connections are tried again, after what `Retry-After` says
    or else after 1, 2, 4 … seconds."""
    max_bytes: int = Field(default=10 * 2**30, ge=1)
    """A file or page that is larger fails. Pages of `rest` and `wfs` have 64 MiB at most, whatever this says."""
    hosts: tuple[str, ...] = ()
    """More hosts (`host` or `host:port`) that links and redirects may lead to. Without, they stay on the host of the
    URL: what a listing says must not make us call other servers."""


class FolderSource(SpecModel):
    """Files of a folder of this machine."""

    type: Literal["folder"]
    path: Text
    """An absolute path."""
    pattern: str = "*"
    """Of the names, as in a shell; `**/` reaches into folders."""
    settle_seconds: float = Field(default=5, ge=0)
    """A file that was changed more recently is still being written: it is taken the next time."""


class S3Source(SpecModel):
    """Objects of a bucket."""

    type: Literal["s3"]
    url: Text
    """`s3://bucket/prefix`. Keys and endpoint come from the usual AWS_… variables."""
    pattern: str = "*"
    """Of the part of the key after the prefix."""


class HttpSource(HttpOptions):
    """Files that an index lists, or one file."""

    type: Literal["http"]
    url: Text
    """Of the index, or of the file."""
    index: Literal["none", "json", "html"] = "none"
    """`none`: the URL is the file. `html`: the links of a page. `json`: what `items` finds."""
    items: str = "@"
    """JMESPath to the list of files in a JSON index."""
    item_url: str = "url"
    """JMESPath from an item to the file's URL (relative ones count from the index); an item that is text is its URL."""
    item_name: str | None = None
    """JMESPath from an item to the file's name; the last part of its URL when absent."""
    item_version: str | None = None
    """JMESPath from an item to what changes when the file does: a date, an ETag, a number."""
    pattern: str = "*"
    """Of the names."""


class SftpSource(SpecModel):
    """Files of a folder of an SFTP server."""

    type: Literal["sftp"]
    host: Text
    """Name or address of the server."""
    port: int = Field(default=22, ge=1, le=65_535)
    user: Text
    """Who logs in."""
    password: FromVariable | None = None
    """Variable with the password."""
    key_file: Text | None = None
    """Instead: file of a private key (`~` allowed)."""
    passphrase: FromVariable | None = None
    """Of `key_file`, where it has one."""
    host_key: Text | None = None
    """The server's public key, `ssh-ed25519 AAAA…`: what `ssh-keyscan` prints behind the host. Compare it with what
    those who run the server say."""
    known_hosts: Text | None = None
    """Instead: file that has it, in the form of OpenSSH (`~` allowed)."""
    path: Text = "."
    """Folder of the files; a relative one counts from where the login leads."""
    pattern: str = "*"
    """Of the names, as in a shell; `**/` reaches into folders. Symbolic links are not followed."""
    settle_seconds: float = Field(default=60, ge=0)
    """A file that was changed more recently, by this machine's clock, is still being written: it is taken the next
    time."""
    connect_timeout: float = Field(default=10, gt=0)
    """Seconds, of each step of the login."""
    read_timeout: float = Field(default=60, gt=0)
    """Seconds of silence."""
    max_bytes: int = Field(default=10 * 2**30, ge=1)
    """A larger file fails."""

    @field_validator("host_key")
    @classmethod
    def _whole_key(cls, value: Text | None) -> Text | None:
        if isinstance(value, str) and not re.fullmatch(r"[a-z][\w@.-]+ [A-Za-z0-9+/]{40,}={0,2}( .*)?", value.strip()):
            raise ValueError("write type and key, `ssh-ed25519 AAAA…`: what `ssh-keyscan` prints behind the host")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SftpSource:
        if (self.password is None) == (self.key_file is None):
            raise ValueError("give either password or key_file")
        if self.passphrase and not self.key_file:
            raise ValueError("`passphrase` is that of a `key_file`")
        if (self.host_key is None) == (self.known_hosts is None):
            raise ValueError("give either host_key or known_hosts: no server is trusted unseen")
        return self


class PagingSpec(SpecModel):
    """How an API gives its pages."""

    by: Literal["none", "link", "cursor", "offset", "page"] = "none"
    """`link`: a URL in the reply (`next`) or in the Link header. `cursor`: a value in the reply (`next`) becomes the
    parameter. `offset` and `page`: a number becomes the parameter."""
    next: str = "next"
    """JMESPath to the link or the cursor; null or absent at the end."""
    parameter: str = "page"
    """Query parameter of the cursor, the offset or the page."""
    size_parameter: str | None = None
    """Query parameter of the page's size."""
    size: int = Field(default=100, ge=1)
    """Records of a page."""
    first: int = 0
    """First offset or page."""
    max_pages: int = Field(default=100_000, ge=1)
    """More fail, since a listing without end is an error."""
    total: str | None = None
    """JMESPath to the number of all records, where replies tell it. A listing that changes while it is read, or gives
    another number of records, then fails."""


class RepeatSpec(SpecModel):
    """A call for each of several values, which stand as `{name}` in url, params and body."""

    sql: str | None = None
    """A query of the target: each row is a call, its columns are the names."""
    values: tuple[dict[str, str | int], ...] = ()
    """The values themselves."""
    first: int | None = None
    """With `last`: a count, whose name is `index`."""
    last: int | None = None

    @model_validator(mode="after")
    def _one(self) -> RepeatSpec:
        given = [bool(self.sql), bool(self.values), self.first is not None and self.last is not None]
        if sum(given) != 1:
            raise ValueError("give one of sql, values, or first and last")
        return self


class RestSource(HttpOptions):
    """Records of an API, page by page. A landed file is a page's reply, as it came; or all of them, a line each."""

    type: Literal["rest"]
    url: Text
    method: Literal["GET", "POST"] = "GET"
    params: dict[str, str | int | float | bool] = {}
    """Query parameters; `{window_start}` and `{window_end}` are those of the partition, in ISO 8601."""
    body: dict[str, object] | str | None = None
    """JSON, or text."""
    paging: PagingSpec = PagingSpec()
    repeat: RepeatSpec | None = None
    one_file: bool = False
    """Whether all pages of a landing are one file, all or none. They are anyway where the style takes a file for the
    whole: `replace`, `snapshot`, `shadow`, `partition`, and `history` with `absent: close`. Pages must be JSON."""

    @property
    def has_pages(self) -> bool:
        """Whether a landing may be more than one call."""
        return self.paging.by != "none" or self.repeat is not None


class WfsSource(HttpOptions):
    """Features of a Web Feature Service (2.0), by pages, as GeoJSON or GML."""

    type: Literal["wfs"]
    url: Text
    type_name: str
    """Name of the feature type."""
    output_format: str = "application/json"
    """`application/json`, or a GML format of the server."""
    srs_name: str | None = None
    """Coordinates, such as `EPSG:3301`."""
    page_features: int = Field(default=1_000, ge=1)
    """Features of a page."""
    cql_filter: str | None = None
    one_file: bool = False
    """As of `rest`; GML cannot be."""

    @property
    def has_pages(self) -> bool:
        return True


class DatabaseSource(SpecModel):
    """Rows of another database, by SQLAlchemy, or of PostgreSQL by COPY."""

    type: Literal["database"]
    connection: str | None = None
    """Name of a connection in resources/."""
    url: FromVariable | None = None
    """Instead: variable with a SQLAlchemy URL, `mssql+pyodbc://…`, `oracle+oracledb://…`, `sqlite:///…`. Its driver
    must be installed."""
    table: str | None = None
    """`schema.name`; or a select.sql beside, which may use `%(window_start)s`, `%(window_end)s`, `%(since)s`."""
    mode: Literal["full", "incremental", "changes"] = "full"
    """`full`: all rows at each run. `incremental`: those whose `column` is beyond the last seen value. `changes`: all
    rows are read, and those whose digest is new are landed."""
    column: str | None = None
    """Timestamp or growing key of `incremental`."""
    lag_seconds: float = Field(default=300, ge=0)
    """How far back of the last seen value an incremental pull reads again, for rows that were committed late. Where the
    source is PostgreSQL, it reads back to its oldest open transaction, too."""

    @model_validator(mode="after")
    def _consistent(self) -> DatabaseSource:
        if (self.connection is None) == (self.url is None):
            raise ValueError("give either connection or url")
        if (self.mode == "incremental") != (self.column is not None):
            raise ValueError("`column` and `mode: incremental` go together")
        return self


class TableSource(SpecModel):
    """Another loaded table, or that of a transform, whose rows are copied on, into another database as a rule. A load
    of it starts this one."""

    type: Literal["table"]
    table: str
    """Id (`group/name`) of the loaded table, or of the transform."""


class TableApiSource(HttpOptions):
    """A table that a service like ours serves (`published: true`), whose rows are copied page by page."""

    type: Literal["table_api"]
    url: Text
    """Address of the service, without `/api`."""
    table: str = Field(pattern=r"^[^.\s]+\.[^.\s]+$")
    """`schema.name` there."""
    client: Text
    """Id of the client there: `export-pipelines client create`."""
    key: FromVariable
    """Its key."""

    @model_validator(mode="after")
    def _signed(self) -> TableApiSource:
        if self.auth.type != "none":
            raise ValueError("calls are signed by `client` and `key`: leave out `auth`")
        return self


class UploadSource(SpecModel):
    """CSV files that people upload on the page of the service, or programs by its API. Each data set that they make has
    a table of its own, `<table>_<organisation>_<data set>`, whose columns and types they choose."""

    type: Literal["upload"]
    organisations: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,14}$")], ...] = Field(min_length=1)
    """Short names of the organisations that data sets are of."""
    who: tuple[str, ...] = ()
    """Users and `group:NAME` who may upload, load and restore; operators may anyway. `*` is everybody with the scope
    `upload`."""
    max_bytes: int = Field(default=100 * 2**20, ge=1, le=10 * 2**30)
    """A larger file is refused."""


Source = Annotated[
    FolderSource
    | S3Source
    | HttpSource
    | SftpSource
    | RestSource
    | WfsSource
    | DatabaseSource
    | TableSource
    | TableApiSource
    | UploadSource,
    Field(discriminator="type"),
]

ROW_SOURCES = ("database", "table", "table_api")
"""Sources that give rows, which landing counts and writes as CSV itself."""
