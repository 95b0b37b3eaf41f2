"""Where this project finds its databases and stores: the environment, then `.env`, then the embedded server.

Each variable replaces just its own part. Relative paths count from the project's folder, whatever the current one is.

    DATABASE_URL     source database                default: database `source` of the embedded server
    DAGSTER_PG_URL   Dagster's storage and catalog  default: database `dagster` of the embedded server
    EXPORT_PATH      folder of exported files       default: .local/exports
    DSL_PATH         folder of select.sql tasks     default: none
    ARCHIVE_URL      file://… or s3://bucket/prefix default: .local/archive
    LANDING_PATH     folder of landed files         default: .local/landing
    DAGSTER_HOME     folder of dagster.yaml         default: .local/dagster
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from dotenv import dotenv_values

from export_pipelines.errors import RequestError

SOURCE_DATABASE = "source"
DAGSTER_DATABASE = "dagster"

# Keepalives well below the 60 s (and more) after which proxies cut idle connections.
_STORAGE_DEFAULTS = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "application_name": "export_pipelines_dagster",
}

_OURS = {"DATABASE_URL", "DAGSTER_PG_URL", "EXPORT_PATH", "DSL_PATH", "ARCHIVE_URL", "DAGSTER_HOME"}
# All projects of a workspace share one Dagster.
_SHARED = {"DAGSTER_PG_URL", "DAGSTER_HOME", "DAGSTER_DISABLE_TELEMETRY"}
_DERIVED = "EXPORT_PIPELINES_DERIVED"


@dataclass(frozen=True)
class Settings:
    """All that is not in the three folders. A URL is None when it would be embedded and no server was ever started."""

    root: Path
    database_url: str | None = field(repr=False)
    dagster_pg_url: str | None = field(repr=False)
    export_path: Path
    dsl_path: Path | None
    archive_url: str
    dagster_home: Path
    embedded_source: bool
    embedded_dagster: bool
    catalog_schema: str = "export_pipelines"
    dotenv: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def state(self) -> Path:
        """Folder of all that is made on this machine: the embedded server, exports, archive, Dagster's home."""
        return self.root / ".local"

    @property
    def embedded(self) -> bool:
        """Whether any part stands on the embedded server."""
        return self.embedded_source or self.embedded_dagster


def find_root() -> Path:
    """The project's folder: EXPORT_PIPELINES_PROJECT, else the nearest one with workspace.yaml and assets/.

    Raises:
        RequestError: there is none.
    """
    if given := os.environ.get("EXPORT_PIPELINES_PROJECT"):
        root = Path(given).expanduser().resolve()
        if not root.is_dir():
            raise RequestError(
                f"EXPORT_PIPELINES_PROJECT names {given!r}, which is no folder", hint="correct or unset the variable"
            )
        return root
    for folder in _candidates():
        if (folder / "workspace.yaml").is_file() and (folder / "assets").is_dir():
            return folder
    raise RequestError(
        f"{Path.cwd()} is not in a project: no workspace.yaml and assets/ here or above",
        hint="change to your project, or make one with: export-pipelines init DIR",
    )


def load_settings(root: Path | None = None) -> Settings:
    """Read the settings; nothing is started, connected to or written.

    Raises:
        RequestError: there is no project, or a variable has a value that cannot be used.
    """
    root = (root or find_root()).resolve()
    dotenv = {name: value for name, value in dotenv_values(root / ".env").items() if value}
    values = {**dotenv, **_environment_of(root)}
    source, dagster = values.get("DATABASE_URL"), values.get("DAGSTER_PG_URL")
    state = root / ".local"
    return Settings(
        root=root,
        database_url=_database_url("DATABASE_URL", source) if source else _embedded_url(state, SOURCE_DATABASE),
        dagster_pg_url=with_storage_defaults(
            _database_url("DAGSTER_PG_URL", dagster) if dagster else _embedded_url(state, DAGSTER_DATABASE)
        ),
        export_path=_folder(root, values.get("EXPORT_PATH")) or state / "exports",
        dsl_path=_folder(root, values.get("DSL_PATH")),
        archive_url=_archive_url(root, values.get("ARCHIVE_URL")),
        dagster_home=_folder(root, values.get("DAGSTER_HOME")) or state / "dagster",
        embedded_source=not source,
        embedded_dagster=not dagster,
        dotenv=dotenv,
    )


def apply(settings: Settings) -> None:
    """Put the settings into the environment, for dagster.yaml, `{env: …}` in resources/ and our child processes.

    What was not there before is remembered as this project's: other projects in the same workspace do not take it.
    """
    values = {**settings.dotenv, **environment(settings)}
    given = _environment_of(settings.root)
    derived = {name for name in values if name not in given} | set(_derived(settings.root))
    os.environ.update({name: value for name, value in values.items() if name not in given or name in _OURS})
    os.environ[_DERIVED] = "\n".join([str(settings.root), *sorted(derived - _SHARED)])


def environment(settings: Settings) -> dict[str, str]:
    """The variables that stand for these settings."""
    values = {
        "DATABASE_URL": settings.database_url,
        "DAGSTER_PG_URL": settings.dagster_pg_url,
        "EXPORT_PATH": str(settings.export_path),
        "DSL_PATH": str(settings.dsl_path) if settings.dsl_path else None,
        "ARCHIVE_URL": settings.archive_url,
        "LANDING_PATH": str(_folder(settings.root, settings.dotenv.get("LANDING_PATH")) or settings.state / "landing"),
        "DAGSTER_HOME": str(settings.dagster_home),
        "DAGSTER_DISABLE_TELEMETRY": "true",
    }
    return {name: value for name, value in values.items() if value}


def with_storage_defaults(url: str | None) -> str | None:
    """Add time-out, keepalives and a name to the URL of Dagster's storage, where it does not give its own."""
    if url is None:
        return None
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return urlunsplit(parts._replace(query=urlencode({**_STORAGE_DEFAULTS, **query}, quote_via=quote, safe="/")))


def _environment_of(root: Path) -> dict[str, str]:
    """The environment without empty variables and without what `apply` put there for another project."""
    foreign = set() if _derived(root) else set(os.environ.get(_DERIVED, "").split("\n")[1:])
    return {name: value for name, value in os.environ.items() if value and name not in foreign}


def _derived(root: Path) -> list[str]:
    """Names of the variables that `apply` has set for this project; none if it did so for another."""
    owner, *names = os.environ.get(_DERIVED, "").split("\n")
    return names if owner == str(root) else []


def _candidates() -> Iterator[Path]:
    """The folder first on Python's path (the working_directory of a code location), then the current one and above.

    Folders above the first on Python's path come last: a script in .venv/bin is below the project that holds .venv,
    which need not be the project that is meant.
    """
    first = Path(sys.path[0] if sys.path else "").resolve()
    current = Path.cwd()
    yield from [first, current, *current.parents, *first.parents]


def _database_url(name: str, url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.split("+")[0] not in ("postgres", "postgresql"):
        raise RequestError(
            f"{name} is no PostgreSQL URL", hint="it looks like postgresql://user:password@host:5432/database"
        )
    try:
        _ = urlsplit(url).port
    except ValueError:
        # The reason given by urllib quotes the text, which may hold the password.
        raise RequestError(
            f"{name} cannot be parsed: the part after the last `:` is no port",
            hint="write special characters of the password percent-encoded, `@` as %40, `/` as %2F",
        ) from None
    return f"postgresql://{rest}"


def _embedded_url(state: Path, database: str) -> str | None:
    from export_pipelines.local.postgres import known_url

    return known_url(state, database)


def _folder(root: Path, value: str | None) -> Path | None:
    return (root / Path(value).expanduser()).resolve() if value else None


def _archive_url(root: Path, value: str | None) -> str:
    if not value:
        return (root / ".local" / "archive").as_uri()
    if "://" not in value:
        return (root / Path(value).expanduser()).resolve().as_uri()
    if value.split("://")[0] not in ("file", "s3"):
        raise RequestError(
            f"ARCHIVE_URL is {value.split('://')[0]}://…, which is no known kind of store",
            hint="use file:///folder or s3://bucket/prefix",
        )
    return value
