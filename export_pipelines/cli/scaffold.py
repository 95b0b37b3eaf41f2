"""The command `scaffold`: the definition of a table to load, with the types that its rows have."""

from __future__ import annotations

import glob
import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import click
import yaml

from export_pipelines.errors import RequestError, SourceError

if TYPE_CHECKING:
    from export_pipelines.steps.inference import Inferred

_WAREHOUSE = """\
# The database that tables are loaded into; another one is another variable.
type: export_pipelines.PostgresConnection
attributes:
  resource_key: warehouse
  url: {env: DATABASE_URL}
"""
_LANDING = """\
# Where files land before they are loaded.
type: export_pipelines.FilesystemStore
attributes:
  resource_key: landing
  path: {env: LANDING_PATH}
"""
_MAX_BYTES = 100 * 2**20
"""Of a file by URL: more of it is not looked at."""


@click.command("scaffold")
@click.argument("table", metavar="GROUP/TABLE")
@click.option(
    "--from-file",
    "file",
    metavar="PATH",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file of this machine.",
)
@click.option("--from-url", "url", metavar="URL", help="A file by HTTP or SFTP.")
@click.option("--from-table", "origin", metavar="SCHEMA.NAME", help="A table of a database; see --connection.")
@click.option("--connection", default="source", show_default=True, help="Where the table of --from-table is.")
@click.option("--encoding", metavar="NAME", help="Of the file, where it is not UTF-8: cp1252, say.")
@click.option("--key", "key", multiple=True, metavar="COLUMN", help="Columns that tell rows apart; style `upsert`.")
def scaffold_command(
    table: str,
    file: Path | None,
    url: str | None,
    origin: str | None,
    connection: str,
    encoding: str | None,
    key: tuple[str, ...],
) -> None:
    """Write assets/GROUP/TABLE/defs.yaml with the columns and types of a file or a table, for you to change.

    --from-file takes all files of its folder with the same ending; so does --from-url sftp://user@host/folder/file.csv,
    with the password in the variable SFTP_PASSWORD and the server in ~/.ssh/known_hosts. Where resources/ has no
    `warehouse` or no `landing`, they are written, too. Nothing that exists is overwritten.

    \b
      export-pipelines scaffold shop/orders --from-file ~/drops/orders-2025-01.csv
      export-pipelines scaffold shop/orders --from-url https://data.example.org/orders.csv --key order_id
      export-pipelines scaffold shop/orders --from-table sales.orders --connection erp
    """
    if sum(each is not None for each in (file, url, origin)) != 1:
        raise click.UsageError("give one of --from-file, --from-url and --from-table")
    group, _, name = table.strip("/").rpartition("/")
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,44}", name) or not re.fullmatch(r"[a-z_][a-z0-9_]{0,44}", group):
        raise RequestError(f"{table!r} is not GROUP/TABLE of lower-case letters, digits and _", hint="shop/orders, say")
    from export_pipelines.settings import find_root

    root = find_root()
    target = root / "assets" / group / name / "defs.yaml"
    if target.exists():
        raise RequestError(f"{target} exists", hint="choose another name, or remove it")
    more: dict[str, Any] = {}
    if origin is not None:
        source, columns = _of_table(origin, connection)
    else:
        source, columns, more = _of_file(file, url, encoding)
    spec: dict[str, Any] = {"source": source, **more, "target": {"table": f"{group}.{name}"}}
    if key:
        if unknown := [each for each in key if each not in columns]:
            raise RequestError(f"there is no column {unknown[0]!r}", hint=f"there are {', '.join(columns)}")
        spec |= {"style": "upsert", "key": list(key)}
    elif origin is None:
        # A file that people mend or add to and drop again: its rows would be there twice.
        spec["revised"] = "replace"
    spec["columns"] = columns
    text = yaml.safe_dump(
        {"type": "export_pipelines.LoadTable", "attributes": spec}, sort_keys=False, allow_unicode=True
    )
    for path, content in missing_resources(root).items():
        _write(path, content)
    _write(target, text)
    click.echo(f"\nNext:  export-pipelines check --offline  &&  export-pipelines load run {group}/{name}")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    click.echo(f"  {file}")


def missing_resources(root: Path) -> dict[Path, str]:
    """Path and text of the files of `warehouse` and `landing`, where resources/ has none of the name."""
    from export_pipelines.cli.project import read_project
    from export_pipelines.settings import load_settings

    known = read_project(load_settings(root)).resources
    wanted = {"warehouse": _WAREHOUSE, "landing": _LANDING}
    return {root / "resources" / key / "defs.yaml": text for key, text in wanted.items() if key not in known}


def _of_file(
    file: Path | None, url: str | None, encoding: str | None
) -> tuple[dict[str, Any], dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Source and columns of a file, and `file` of the definition, where it needs one."""
    source: dict[str, Any]
    with ExitStack() as stack:
        if file is None:
            assert url is not None
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "sample"
            if url.lower().startswith("sftp:"):
                name, source = _download_sftp(url, path)
            else:
                name, source = _download(url, path), {"type": "http", "url": url}
        else:
            path, name = file.resolve(), file.name
            source = {"type": "folder", "path": str(path.parent), "pattern": _pattern(name)}
        written, found = _inferred(path, name, {"encoding": encoding} if encoding else {})
    return source, _columns(found), {"file": written} if written else {}


def _inferred(path: Path, name: str, written: dict[str, str]) -> tuple[dict[str, str], list[Inferred]]:
    """How the file is written, with its delimiter where that is no comma, and its columns."""
    from export_pipelines.formats.parsing import format_of, other_delimiter, parse
    from export_pipelines.specs.load import FileSpec
    from export_pipelines.steps.inference import infer

    spec = FileSpec.model_validate(written)
    parsed = parse(spec, None, lambda: path.open("rb"), name)
    delimiter = other_delimiter(parsed.columns) if format_of(spec, name) == "csv" else None
    if delimiter is not None:
        parsed.close()
        written = {"delimiter": delimiter, **written}
        parsed = parse(FileSpec.model_validate(written), None, lambda: path.open("rb"), name)
    return written, infer(parsed)


def _pattern(name: str) -> str:
    """All files with the ending of this one."""
    suffixes = Path(name).suffixes
    return "*" + "".join(suffixes[-2:] if suffixes[-1:] in ([".gz"], [".zst"], [".zip"]) else suffixes[-1:])


def _download_sftp(url: str, path: Path) -> tuple[str, dict[str, Any]]:
    """The file's name, and the source of its folder."""
    from export_pipelines.sources.files_sftp import SftpFiles
    from export_pipelines.specs.load_sources import SftpSource

    parts = urlsplit(url)
    folder, _, name = unquote(parts.path).rpartition("/")
    if not (parts.hostname and parts.username and name) or parts.password is not None:
        hint = "sftp://user@host/folder/file.csv, and the password in the variable SFTP_PASSWORD"
        raise RequestError("the URL does not name user, host and file alone", hint=hint)
    # As curl has it, `/~/` is where the login leads.
    folder = folder.removeprefix("/~").lstrip("/") or "." if f"{folder}/".startswith("/~/") else folder or "/"
    login = {"user": unquote(parts.username), "password": {"env": "SFTP_PASSWORD"}, "known_hosts": "~/.ssh/known_hosts"}
    port = {"port": parts.port} if parts.port else {}
    source = {"type": "sftp", "host": parts.hostname, **port, **login, "path": folder, "pattern": _pattern(name)}
    alone = {"pattern": glob.escape(name), "settle_seconds": 0, "max_bytes": _MAX_BYTES}
    files = SftpFiles(SftpSource.model_validate({**source, **alone}))
    found = [*files.list()]
    if not found:
        raise RequestError(f"there is no file {name!r} in {folder!r} of {parts.hostname}")
    try:
        with files.open(found[0], "") as download, path.open("wb") as out:
            out.writelines(download.pieces if download else ())
    finally:
        files.close()
    return name, source


def _download(url: str, path: Path) -> str:
    """The file's name."""
    import httpx

    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=60) as reply, path.open("wb") as out:
            if reply.status_code != 200:
                raise SourceError(f"{url} answers {reply.status_code}")
            for data in reply.iter_bytes(1 << 16):
                out.write(data)
                if out.tell() > _MAX_BYTES:
                    raise RequestError(
                        f"the file is larger than {_MAX_BYTES // 2**20} MiB", hint="take a part of it by --from-file"
                    )
            return reply.url.path.rpartition("/")[2]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SourceError(f"{url} cannot be fetched: {error}") from error


def _columns(found: Sequence[Inferred]) -> dict[str, dict[str, str]]:
    """The columns of the definition: names that are none of PostgreSQL's plain ones are changed."""
    from export_pipelines.specs.uploads import column_names

    names = column_names(each.name for each in found)
    return {
        name: {"type": each.type, **({"source": each.name} if name != each.name else {})}
        for name, each in zip(names, found, strict=True)
    }


def _of_table(origin: str, connection: str) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Source and columns of a table of PostgreSQL, with its own types."""
    from export_pipelines.cli.project import opened
    from export_pipelines.sources.postgres import PostgresSource
    from export_pipelines.specs.load_names import OWN_COLUMNS

    schema, _, name = origin.rpartition(".")
    with opened() as project:
        source = project.resource(connection)
        if not isinstance(source, PostgresSource):
            raise RequestError(f"{connection!r} is no connection to PostgreSQL")
        with source.session() as session:
            session.begin()
            found = session.execute(
                "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute a JOIN pg_class c "
                "ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND "
                "c.relname = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                (schema or "public", name),
            )
    if not found:
        raise RequestError(f"{connection!r} has no table {origin!r}", hint="write it as schema.name")
    plain = re.compile(r"[a-z_][a-z0-9_]*")
    if odd := [each for each, _ in found if not plain.fullmatch(each) or each in OWN_COLUMNS]:
        raise RequestError(f"column {odd[0]!r} cannot be named so here", hint="write the definition with a select.sql")
    columns = {each: {"type": kind} for each, kind in found}
    return {"type": "database", "connection": connection, "table": f"{schema or 'public'}.{name}"}, columns
