"""The commands `verify` and `heads`: for operators with a project, and for auditors with an archive alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output
from export_pipelines.cli.archive import archive_keys, archived_tables, following

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.cli.verify_landed import Landed
    from export_pipelines.formats.encryption import Keyring
    from export_pipelines.settings import Settings
    from export_pipelines.signing import PublicKey
    from export_pipelines.steps.verification import VerificationState
    from export_pipelines.steps.verify import Target, VerifyReport
    from export_pipelines.stores.base import Store

_HEAD = re.compile(r"(?P<table>.+)=(?P<sequence>\d+):(?P<sha256>[0-9a-f]{64})")


@dataclass
class _Archives:
    """Where to verify, and what is known beside the archive itself."""

    stores: list[Store]
    tables: list[tuple[Store, str]]
    keyring: Keyring
    keys: tuple[PublicKey, ...]
    state: VerificationState
    project: Opened | None = None
    """With a catalog to ask."""


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    from export_pipelines.specs.sizes import parse_size

    try:
        return parse_size(value) if value else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _heads(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> list[tuple[str, int, str]]:
    found = [_HEAD.fullmatch(value.strip()) for value in values]
    if not all(found):
        raise click.BadParameter("write TABLE=SEQUENCE:SHA256, as `export-pipelines heads` prints it")
    return [(match["table"], int(match["sequence"]), match["sha256"]) for match in found if match]


_PATH = click.Path(path_type=Path, dir_okay=False)


@click.command("verify")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--partition", metavar="KEY", help="One partition (of one table).")
@click.option(
    "--archive", "url", metavar="URL", help="This archive, without any project: a folder or s3://bucket/prefix."
)
@click.option("--no-database", is_flag=True, help="Ask no catalog, so a chain whose end was cut off is not noticed.")
@click.option("--budget", callback=_size, metavar="SIZE", help="Read at most so many bytes of files (10GB).")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Read for at most so long.")
@click.option(
    "--state", type=_PATH, metavar="FILE", help="Remember in FILE what was verified when, not in the catalog."
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Processes at work; as many as there are cores.")
@click.option("--public-key", "public_keys", type=_PATH, multiple=True, metavar="FILE", help="Check signatures by it.")
@click.option("--identity", "identities", type=_PATH, multiple=True, metavar="FILE", help="Open encrypted files by it.")
@click.option("--expect", callback=_heads, multiple=True, metavar="HEAD", help="TABLE=SEQUENCE:SHA256 must be there.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def verify_command(
    tables: tuple[str, ...],
    partition: str | None,
    url: str | None,
    no_database: bool,
    budget: int | None,
    minutes: float | None,
    state: Path | None,
    jobs: int | None,
    public_keys: tuple[Path, ...],
    identities: tuple[Path, ...],
    expect: list[tuple[str, int, str]],
    as_json: bool,
) -> int:
    """Read the archive again and compare it with its manifests: digests, rows, receipts, chain, signatures.

    Without a TABLE: all tables that have anything in the archive, and the landed files of all tables to load. Exit code
    1 when anything is not as it should be.

    With --budget or --minutes, files that were never verified come first, then those of longest ago. When that was is
    remembered in the catalog, or in the FILE of --state. Chains are always read whole. Landed files are then read for
    the tables that are named.

    \b
      export-pipelines verify sales/orders
      export-pipelines verify --budget 10GB
      export-pipelines verify --archive /mnt/archive --public-key signing.pem.pub
    """
    if partition and len(tables) != 1:
        raise click.UsageError("--partition needs one TABLE")
    from export_pipelines.cli.verify_landed import landed_json, tell_landed
    from export_pipelines.settings import load_settings
    from export_pipelines.steps.verify import Budget, verify_tables
    from export_pipelines.steps.verify_workers import default_jobs

    landed: list[Landed] = []
    settings = None if url else load_settings()
    if settings and not partition:
        named, (landed, tables) = bool(tables), _landed(settings, tables, budgeted=bool(budget or minutes))
        if named and not tables:
            tell_landed(landed, as_json=as_json)
            return 0 if all(each.intact for each in landed) else 1
    with _archives(url, tables, settings, no_database=no_database) as found, following("verifying") as progress:
        found = _with_options(found, state, public_keys, identities)
        targets = _targets(found, tables, expect)
        if (budget or minutes) and not found.project and state is None:
            output.warn("nothing remembers what was verified, so the same files are read each time; give --state FILE")
        reports = verify_tables(
            targets,
            partition=partition,
            jobs=jobs or default_jobs(),
            budget=Budget(budget, minutes * 60 if minutes else None),
            state=found.state,
            progress=progress,
            keyring=found.keyring,
            keys=found.keys,
        )
        if not tables:
            reports += _strays(found)
    if as_json:
        archived = [{**asdict(each), "intact": each.intact, "limits": each.limits} for each in reports]
        output.as_json([*archived, *landed_json(landed)])
    else:
        _tell_reports(reports)
        if landed:
            tell_landed(landed)
    return 0 if all([*(each.intact for each in reports), *(each.intact for each in landed)]) else 1


def _landed(settings: Settings, names: tuple[str, ...], *, budgeted: bool) -> tuple[list[Landed], tuple[str, ...]]:
    """What has landed of the tables to load that are meant, and the names that are left."""
    from export_pipelines.cli.project import read_project, warn_of_broken
    from export_pipelines.cli.verify_landed import check_tables, tables_to_load

    project = read_project(settings)
    if not names:
        warn_of_broken(project)
    loads, left = tables_to_load(project, names)
    return check_tables(loads if names or not budgeted else {}, project.resources), left


@click.command("heads")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option(
    "--archive", "url", metavar="URL", help="This archive, without any project: a folder or s3://bucket/prefix."
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def heads_command(tables: tuple[str, ...], url: str | None, as_json: bool) -> None:
    """Print the last manifest of each chain: keep it elsewhere, and give it to `verify --expect`.

    Only that manifest is read, and nothing is verified.
    """
    from export_pipelines.steps.chain import end_of_chain
    from export_pipelines.steps.signatures import Head

    with _archives(url, tables, no_database=True) as found:
        heads = [Head(table, *end_of_chain(store, table, None)) for store, table in found.tables]
    if as_json:
        output.as_json([asdict(head) for head in heads])
        return
    for head in heads:
        click.echo(head)


@contextmanager
def _archives(
    url: str | None, names: Sequence[str], settings: Settings | None = None, *, no_database: bool
) -> Iterator[_Archives]:
    """The archive of a URL, or those of the project."""
    from export_pipelines.cli.project import Opened, opened, read_project
    from export_pipelines.formats.encryption import NO_KEYS
    from export_pipelines.settings import load_settings
    from export_pipelines.steps.verification import Forgetful, InCatalog

    if url:
        store = _store(url)
        yield _Archives([store], _named_in(store, names), NO_KEYS, (), Forgetful())
    elif no_database:
        settings = settings or load_settings()
        yield _of_project(Opened(settings, read_project(settings)), names, Forgetful())
    else:
        with opened(settings=settings) as project:
            yield replace(_of_project(project, names, InCatalog(project.catalog)), project=project)


def _of_project(project: Opened, names: Sequence[str], state: VerificationState) -> _Archives:
    stores = [project.resource(key) for key in archive_keys(project)]
    return _Archives(stores, archived_tables(project, names), project.keyring, project.signing.public, state)


def _store(url: str) -> Store:
    from export_pipelines.cli.project import quiet
    from export_pipelines.errors import RequestError
    from export_pipelines.stores import open_store

    quiet()
    if "://" not in url and not Path(url).is_dir():
        raise RequestError(f"there is no folder {url}", hint="give the folder of an archive, or s3://bucket/prefix")
    return open_store(url if "://" in url else str(Path(url).resolve()))


def _named_in(store: Store, names: Sequence[str]) -> list[tuple[Store, str]]:
    """The tables of an archive that some names or patterns mean; one that is not there is looked for all the same."""
    from export_pipelines.cli.project import fits, is_pattern
    from export_pipelines.steps.verify import tables_in

    there = tables_in(store)
    found: dict[str, None] = dict.fromkeys(() if names else there)
    for name in names:
        matching = [each for each in there if fits(name, each)]
        found |= dict.fromkeys(matching or ([] if is_pattern(name) else [name]))
    return [(store, table) for table in found]


def _with_options(
    found: _Archives, state: Path | None, public_keys: Sequence[Path], identities: Sequence[Path]
) -> _Archives:
    """Keys and state as the options say; keys take the place of the project's."""
    from export_pipelines.formats.encryption import Keyring
    from export_pipelines.signing import read_public_key
    from export_pipelines.steps.verification import InFile

    return replace(
        found,
        state=InFile(state) if state else found.state,
        keys=tuple(map(read_public_key, public_keys)) or found.keys,
        keyring=found.keyring + Keyring(tuple(str(each) for each in identities)),
    )


def _targets(found: _Archives, names: Sequence[str], expect: Sequence[tuple[str, int, str]]) -> list[Target]:
    """What to verify. Tables that the catalog, or an auditor, knows of are looked for though nothing is there."""
    from export_pipelines.errors import RequestError
    from export_pipelines.steps.chain_check import Expected
    from export_pipelines.steps.verify import Target

    if expect and not found.stores:
        raise RequestError("this project has no archive, so what --expect names is not there")
    heads: dict[str, dict[str, tuple[int, str]]] = {}
    if found.project:
        heads = {store.url: found.project.catalog.heads(store.url) for store in found.stores}
    wanted = [*found.tables]
    if not names:
        gone = [(store, table) for store in found.stores for table in heads.get(store.url, ())]
        expected = [(found.stores[0], table) for table, _, _ in expect]
        wanted += [each for each in gone if each not in wanted]
        wanted += [each for each in dict.fromkeys(expected) if each[1] not in {table for _, table in wanted}]
    return [
        Target(
            store,
            table,
            (
                *(Expected(*head, "the catalog") for head in [heads.get(store.url, {}).get(table)] if head),
                *(Expected(number, sha256, "--expect") for name, number, sha256 in expect if name == table),
            ),
        )
        for store, table in wanted
    ]


def _strays(found: _Archives) -> list[VerifyReport]:
    """What lies in an archive and in no table's folder, as a report of no table."""
    from export_pipelines.steps.verify import VerifyReport, strays

    reports = []
    for store in found.stores:
        if keys := strays(store, [table for each, table in found.tables if each is store]):
            reports.append(VerifyReport("", 0, 0, 0, 0, 0.0, (), unaccounted=tuple(keys)))
    return reports


def _verdict(report: VerifyReport) -> str:
    if not report.intact:
        return output.count(len(report.problems), "problem")
    if report.left_out:
        return f"intact, {report.left_out:,} left out"
    return "intact as stored, not opened" if report.sealed else "intact"


def _tell_reports(reports: Sequence[VerifyReport]) -> None:
    tables = [each for each in reports if each.table]
    if not tables:
        click.echo("nothing is archived")
    else:
        output.table(
            output.columns("table", "#files", "#of", "#rows", "#bytes", "#receipts", "#signed", "#seconds", "result"),
            [_row(each) for each in tables],
        )
    for each in reports:
        _tell_more(each)


def _row(each: VerifyReport) -> list[Any]:
    return [
        each.table,
        each.artifacts,
        each.total,
        each.rows,
        output.size(each.bytes),
        each.receipts,
        each.signed,
        each.seconds,
        _verdict(each),
    ]


def _tell_more(each: VerifyReport) -> None:
    """Problems, and what else a person should know of a table."""
    name = each.table or "in no table's folder"
    for problem in each.problems:
        click.secho(f"error: {name}: {problem}", err=True, fg="red")
    if each.limits:
        output.warn(f"{name}: {each.limits}")
    for file in each.too_large:
        output.warn(f"{name}: larger than the whole budget, so it is never verified: {file}")
    if each.never:
        output.note(f"{name}: {output.count(each.never, 'file')} never verified so far")
    if each.unaccounted:
        output.warn(f"{name}: {output.count(len(each.unaccounted), 'object')} that no manifest names; see `sweep`")
