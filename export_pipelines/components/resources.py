"""The Dagster resources that resources/ describes: connections and stores by name. None connects before it is used."""

from __future__ import annotations

import hashlib
import os
import re
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field, field_validator, model_validator

from export_pipelines.catalog import Catalog
from export_pipelines.errors import RequestError
from export_pipelines.formats.encryption import Keyring
from export_pipelines.signing import SigningKeys, read_key_file, read_public_key, read_signer
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.encryption import EncryptionSpec
from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.variables import filled, names_in, unset_in
from export_pipelines.stores import open_store
from export_pipelines.stores.base import Store
from export_pipelines.stores.s3 import S3Store


class FromEnvironment(SpecModel):
    """A value that is in an environment variable (or in `.env`), read when the resource is used."""

    env: str = Field(pattern=r"^\w+$")
    """Name of the variable."""
    default: str | None = None
    """Value when the variable is not set."""


Value = str | FromEnvironment

_S3_OPTIONS = (
    "endpoint_url",
    "region_name",
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "profile_name",
)


def no_password(value: Value | None) -> Value | None:
    found = urlsplit(value).password if isinstance(value, str) and "://" in value else None
    if found and not re.fullmatch(r"(\$\{\w+\})+", found):
        raise ValueError("a password stands in the file; put the URL into a variable: {env: NAME}")
    return value


class ResourceSpec(SpecModel):
    """What each document of resources/ has."""

    resource_key: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name by which tables refer to it: `connection`, `store` or `archive` of their defs.yaml."""

    def resource(self) -> dg.ConfigurableResource[Any]:
        """The Dagster resource. Nothing is connected to."""
        raise NotImplementedError


class PostgresConnectionSpec(ResourceSpec):
    """A PostgreSQL database that tables are exported from."""

    url: Value
    """`postgresql://user:password@host:port/database`, as a rule `{env: DATABASE_URL}`."""
    application_name: str = "export_pipelines"
    """Shown in pg_stat_activity."""
    connect_timeout: int = Field(default=10, ge=1)
    """Seconds."""
    keepalives_idle: int = Field(default=30, ge=0)
    """Seconds of silence before the first TCP keepalive; below the idle limit of any proxy between."""
    keepalives_interval: int = Field(default=10, ge=1)
    """Seconds between two keepalives."""
    keepalives_count: int = Field(default=3, ge=1)
    """Keepalives lost before the connection counts as dead."""
    role: str | None = None
    """Role to take on after connecting (SET ROLE)."""
    sslmode: str | None = None
    """As in libpq: `require`, `verify-full` …"""
    sslrootcert: str | None = None
    """File of the certificate authority."""
    sslcert: str | None = None
    """File of the client's certificate."""
    sslkey: str | None = None
    """File of the client's key."""

    _check_url = field_validator("url")(no_password)

    def resource(self) -> PostgresConnectionResource:
        options = self.model_dump(exclude={"resource_key", "url", "role"}, exclude_none=True)
        parameters = {name: str(value) for name, value in options.items()}
        if self.role:
            parameters["options"] = "-c role=" + self.role.replace("\\", "\\\\").replace(" ", "\\ ")
        return PostgresConnectionResource(url=resolved(self.url), parameters=parameters)


class MysqlConnectionSpec(ResourceSpec):
    """A MySQL or MariaDB database that tables are exported from."""

    url: Value
    """`mysql://user:password@host:port/database`, as a rule `{env: …}`."""
    connect_timeout: int = Field(default=10, ge=1)
    """Seconds."""
    optional: bool = False
    """Whether a machine may lack it: where its variable is not set, `check` passes over it and its tables."""
    ssl_ca: str | None = None
    """File of the certificate authority. With it the connection is encrypted, and the certificate checked."""
    ssl_cert: str | None = None
    """File of the client's certificate."""
    ssl_key: str | None = None
    """File of the client's key."""
    ssl_verify_identity: bool = True
    """Whether the certificate must be that of the host's name; counts with `ssl_ca`."""

    _check_url = field_validator("url")(no_password)

    def resource(self) -> MysqlConnectionResource:
        files = {name: value for name in ("ssl_ca", "ssl_cert", "ssl_key") if (value := getattr(self, name))}
        verify = {"ssl_verify_cert": True, "ssl_verify_identity": self.ssl_verify_identity} if self.ssl_ca else {}
        parameters = {"connect_timeout": self.connect_timeout, **files, **verify}
        return MysqlConnectionResource(url=resolved(self.url), parameters=parameters, optional=self.optional)


class CatalogSpec(ResourceSpec):
    """The database of our own metadata; as a rule the one that Dagster's storage is in."""

    resource_key: str = "catalog"
    url: Value
    """`postgresql://…`, as a rule `{env: DAGSTER_PG_URL}`."""
    db_schema: str = Field(default="export_pipelines", alias="schema")
    """Schema of the metadata tables."""

    _check_url = field_validator("url")(no_password)

    def resource(self) -> CatalogResource:
        return CatalogResource(url=resolved(self.url), schema_name=self.db_schema)


class AgeIdentitySpec(ResourceSpec):
    """Private identities that open encrypted files, for read-backs, verify and restore. Never shown or logged.

    A writer needs none. Where there are several documents of this type, all of them are tried. A file that does not
    exist and a variable that is not set hold none, so that one definition serves machines with and without the key.
    """

    resource_key: str = "identity"
    file: str | None = None
    """An absolute path (`~` allowed) of a file as `age-keygen` writes it, readable for its owner only."""
    env: str | None = Field(default=None, pattern=r"^\w+$")
    """Name of a variable with the identity itself, `AGE-SECRET-KEY-1…`."""

    @model_validator(mode="after")
    def _one_place(self) -> AgeIdentitySpec:
        if (self.file is None) == (self.env is None):
            raise ValueError("give either `file` or `env`")
        if self.file is not None and not self.file.startswith(("/", "~")):
            # What is given is not repeated: it may be the identity itself.
            raise ValueError("`file` is not an absolute path")
        return self

    def resource(self) -> AgeIdentityResource:
        return AgeIdentityResource(file=self.file, env=self.env)


class SigningKeySpec(ResourceSpec):
    """The Ed25519 key pair that manifests are signed with. The private key is never shown or logged.

    With `public_keys` alone nothing is signed here, and signatures are checked.
    """

    resource_key: Literal["signing"] = "signing"
    """Always `signing`: a project signs with one key."""
    file: str | None = None
    """An absolute path (`~` allowed) of the private key in PEM, as `export-pipelines keygen` writes it."""
    env: str | None = Field(default=None, pattern=r"^\w+$")
    """Name of a variable with the private key in PEM."""
    public_keys: tuple[str, ...] = ()
    """Absolute paths of more public keys in PEM whose signatures are valid: those of earlier pairs."""

    @model_validator(mode="after")
    def _one_place(self) -> SigningKeySpec:
        if self.file is not None and self.env is not None:
            raise ValueError("give either `file` or `env`")
        if not (self.file or self.env or self.public_keys):
            raise ValueError("give `file` or `env`, or `public_keys` to check signatures only")
        if any(not each.startswith(("/", "~")) for each in (self.file or "/", *self.public_keys)):
            # What is given is not repeated: it may be the key itself.
            raise ValueError("`file` and `public_keys` are absolute paths")
        return self

    def resource(self) -> SigningKeyResource:
        return SigningKeyResource(file=self.file, env=self.env, public_keys=list(self.public_keys))


class FilesystemStoreSpec(ResourceSpec):
    """A folder."""

    path: Value
    """The folder; made when it is missing."""
    encryption: EncryptionSpec | None = None
    """To whom files are encrypted of tables which say nothing themselves and export to, or archive in, this store."""

    def resource(self) -> StoreResource:
        return StoreResource(url=resolved(self.path))


class S3StoreSpec(ResourceSpec):
    """A bucket, or a prefix in one, of S3 or a server that speaks its protocol."""

    url: Value
    """`s3://bucket/prefix`."""
    endpoint_url: Value | None = None
    """Address of a server other than AWS."""
    region_name: Value | None = None
    """AWS region."""
    aws_access_key_id: FromEnvironment | None = None
    """Access key; AWS's usual search (variables, profile, role) when absent."""
    aws_secret_access_key: FromEnvironment | None = None
    """Secret of the access key."""
    aws_session_token: FromEnvironment | None = None
    """Token of temporary credentials."""
    profile_name: Value | None = None
    """Profile of AWS's configuration files."""
    encryption: EncryptionSpec | None = None
    """To whom files are encrypted of tables which say nothing themselves and export to, or archive in, this store."""

    _check_url = field_validator("url", "endpoint_url")(no_password)

    def resource(self) -> StoreResource:
        options = {
            name: resolved(value)
            for name in type(self).model_fields
            if name not in ("resource_key", "url", "encryption") and (value := getattr(self, name)) is not None
        }
        return StoreResource(url=resolved(self.url), **options)


class StoreSpec(S3StoreSpec):
    """A store whose kind its URL decides: `file:///folder` or `s3://bucket/prefix`; the rest concerns S3 only."""


class PostgresConnectionResource(dg.ConfigurableResource[Any]):
    """A PostgreSQL connection."""

    url: str
    parameters: dict[str, str] = Field(default_factory=dict)

    def open(self) -> PostgresSource:
        """The source; it connects when it is used."""
        return PostgresSource(self.url, parameters=dict(self.parameters))


class MysqlConnectionResource(dg.ConfigurableResource[Any]):
    """A connection to MySQL or MariaDB."""

    url: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    optional: bool = False

    def open(self) -> MysqlSource:
        """The source; it connects when it is used."""
        return MysqlSource(self.url, parameters=dict(self.parameters))


class CatalogResource(dg.ConfigurableResource[Any]):
    """The metadata database."""

    url: str
    schema_name: str = "export_pipelines"

    def open(self) -> Catalog:
        """The catalog; it connects when it is used."""
        return Catalog(self.url, self.schema_name)


class AgeIdentityResource(dg.ConfigurableResource[Any]):
    """Where a private identity is. It is read when a file is opened, and is no part of any configuration."""

    file: str | None = None
    env: str | None = None

    def open(self) -> Keyring:
        """The place, unread."""
        return Keyring((self.file,) if self.file else (), (self.env,) if self.env else ())


class SigningKeyResource(dg.ConfigurableResource[Any]):
    """Where the signing key is; without either place nothing is signed. It is read when a run begins, and is no part of
    any configuration."""

    file: str | None = None
    env: str | None = None
    public_keys: list[str] = Field(default_factory=list)

    def open(self) -> SigningKeys:
        """Read the keys. Raises RequestError if one cannot be read: nothing is left unsigned by mistake."""
        others = tuple(read_public_key(Path(each).expanduser()) for each in self.public_keys)
        if self.file:
            signer = read_signer(read_key_file(Path(self.file).expanduser()), self.file, others)
        elif self.env:
            signer = read_signer(_variable(self.env).encode(), f"variable {self.env}", others)
        else:
            return SigningKeys(None, others)
        return SigningKeys(signer, signer.keys)


def _variable(name: str) -> str:
    return from_environment(FromEnvironment(env=name))


class StoreResource(dg.ConfigurableResource[Any]):
    """A store of files, its kind decided by the URL; a path without a scheme is a folder."""

    url: str
    endpoint_url: str | None = None
    region_name: str | None = None
    aws_access_key_id: str | None = None
    aws_secret_access_key: str | None = None
    aws_session_token: str | None = None
    profile_name: str | None = None

    def open(self) -> Store:
        """The store; it connects when it is used. Raises StoreError if the URL is none of a store."""
        given = {name: getattr(self, name) for name in _S3_OPTIONS if getattr(self, name) is not None}
        if not self.url.startswith("s3://") or not given.keys() - {"endpoint_url", "region_name"}:
            return open_store(self.url, endpoint_url=self.endpoint_url, region=self.region_name)
        return S3Store(*_bucket(self.url), client=partial(_aws_client, given))


def _bucket(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, prefix


def _aws_client(options: dict[str, Any]) -> Any:
    """A client by dagster-aws, which knows all of AWS's ways to give credentials."""
    from dagster_aws.s3 import S3Resource

    return S3Resource(**options).get_client()


def resolved(value: Value) -> str:
    """What a ConfigurableResource takes: the text, or a reference to the variable, which is read when it is used."""
    if isinstance(value, str):
        return _with_variables(value) if names_in(value) else value
    if value.default is not None and value.env not in os.environ:
        return value.default
    # EnvVar is a str whose value Dagster replaces when the resource is made; the UI shows the variable's name.
    return cast(str, dg.EnvVar(value.env))


def _with_variables(text: str) -> str:
    """A text with `${VAR}` as the reference to a variable of its own, so that no password is in any configuration that
    Dagster keeps or shows; where a variable is not set, the reference to that one."""
    if unset := unset_in(text):
        return cast(str, dg.EnvVar(unset[0]))
    name = f"EXPORT_PIPELINES_TEXT_{hashlib.sha256(text.encode()).hexdigest()[:12].upper()}"
    os.environ[name] = filled(text)
    return cast(str, dg.EnvVar(name))


def value_fields(model: type[SpecModel]) -> set[str]:
    """Names of the fields whose value may come from a variable, and is read when it is used."""
    return {name for name, info in model.model_fields.items() if "FromEnvironment" in str(info.annotation)}


def from_environment(value: Value) -> str:
    """The text, or what the variable holds now.

    Raises:
        RequestError: the variable is not set.
    """
    if isinstance(value, str):
        return filled(value)
    found = os.environ.get(value.env, value.default)
    if found is None:
        raise RequestError(f"the variable {value.env} is not set", hint="set it in the environment or in .env")
    return found
