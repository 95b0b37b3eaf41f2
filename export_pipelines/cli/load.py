"""The command `load`: files, databases and APIs into tables of PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output
from export_pipelines.cli.load_runs import run_loads, tell
from export_pipelines.cli.load_selection import chosen, chosen_any, in_order, one
from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.components.load_assets import LoadAssets
    from export_pipelines.components.transforms import TransformAssets
    from export_pipelines.manifest import LandedManifest
    from export_pipelines.specs.transform import TransformDefinition
    from export_pipelines.steps.load import LoadContext, Versioned

_as_json = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")


@click.group("load")
def load_command() -> None:
    """Load tables: land what a source has into a store, as it is, and put it into PostgreSQL, once.

    `load list` shows the tables of the project, `load run TABLE` lands and loads what is new, `load status TABLE` says
    what is loaded, waits or failed, `load versions`, `load diff` and `load rollback` are of the versions that are kept,
    and `load ignore` leaves a file out. A TABLE is an id, a name, or a pattern such as `sales/*`.
    """


@load_command.command("list")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@_as_json
def list_command(tables: tuple[str, ...], as_json: bool) -> None:
    """List the tables to load, and the transforms. Nothing is connected to."""
    from export_pipelines.cli.project import Opened, read_project, warn_of_broken
    from export_pipelines.settings import load_settings

    settings = load_settings()
    project = Opened(settings, read_project(settings))
    found = [_described(each) for each in chosen_any(project, tables)]
    if as_json:
        output.as_json(found)
        return
    heads = ("table", "source", "style", "target", "connection", "partitions")
    output.table(output.columns(*heads), [[each[name] for name in heads] for each in found])
    warn_of_broken(project.project)


@load_command.command("run")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--all", "everything", is_flag=True, help="All tables.")
@click.option("--file", "files", multiple=True, metavar="NAME", help="This file only; may be given several times.")
@click.option(
    "--partition", "keys", multiple=True, metavar="KEY", help="This window only, of tables that have windows."
)
@click.option("--land-only", is_flag=True, help="Land what is new; load nothing.")
@click.option("--no-land", is_flag=True, help="Load what has landed; ask no source.")
@click.option("--force", is_flag=True, help="Fetch and load anew what was loaded before.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run_command(
    tables: tuple[str, ...],
    everything: bool,
    files: tuple[str, ...],
    keys: tuple[str, ...],
    land_only: bool,
    no_land: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Land and load what is new, as runs in Dagster's instance. Exit code 1 when anything failed.

    Transforms run, too. What others wait for (`depends`, `table` sources, what a transform reads) comes first.
    With --all, a broken definition keeps no other back, and counts as a failure.

    \b
      export-pipelines load run shop/orders
      export-pipelines load run 'shop/*' --land-only
      export-pipelines load run shop/orders --force --file orders-2025-01.csv
    """
    if bool(tables) == everything:
        raise click.UsageError("name tables, or give --all")
    if land_only and no_land:
        raise click.UsageError("with --land-only and --no-land nothing would be done")
    config = {"force": force, "names": [*files, *keys], "land": not no_land, "load": not land_only}
    with _opened(everything=everything) as project:
        found = in_order(chosen_any(project, tables))
        _refuse_names(found, files, keys)
        results = run_loads(project, found, config)
    tell(results, as_json=as_json)
    broken = everything and bool(project.project.broken)
    return 1 if broken or any(each["errors"] for each in results) else 0


@load_command.command("status")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@_as_json
def status_command(tables: tuple[str, ...], as_json: bool) -> None:
    """Say of each table what landed, what is loaded, what waits and what failed; of uploads, of each data set."""
    with _opened(everything=not tables) as project:
        found = [_status(ctx) for each in chosen(project, tables) for ctx in _data_sets(_context(project, each))]
    if as_json:
        output.as_json(found)
        return
    heads = ("table", "landed", "loaded", "waiting", "failed", "rows", "quarantined", "version", "last_load")
    output.table(
        output.columns(*(f"#{each}" if each not in ("table", "last_load") else each for each in heads)),
        [[each[name] for name in heads] for each in found],
    )
    for each in found:
        for failure in each["failures"]:
            output.warn(f"{each['table']}: {failure['file']}: {failure['error']}")


@load_command.command("versions")
@click.argument("table")
@_as_json
def versions_command(table: str, as_json: bool) -> None:
    """List the versions of a table that are kept. Styles that change a table in place have but one."""
    from export_pipelines.steps.load import table_versions

    with _opened() as project:
        found = table_versions(_versioned(project, table)[1])
    if as_json:
        output.as_json([asdict(each) for each in found])
        return
    output.table(
        output.columns("#version", "current", "#rows", "digest", "created", "file"),
        [[each.number, each.current, each.rows, each.digest[:16], each.created, each.file_name] for each in found],
    )


@load_command.command("rollback")
@click.argument("table")
@click.argument("version", type=int)
@click.option("--yes", is_flag=True, help="Do not ask. Needed where nobody can answer.")
def rollback_command(table: str, version: int, yes: bool) -> None:
    """Make a kept version the one that readers see.

    Files that were loaded since then are not loaded again by themselves: `load run --force` does that. A transform
    makes a newer version when it runs next. Exit code 1 when the answer was no.
    """
    from export_pipelines.steps.load import rollback, table_versions

    with _opened() as project:
        name, ctx = _versioned(project, table)
        if not yes and version in {each.number for each in table_versions(ctx)}:
            what = f"version {version} of {name}"
            output.agree(
                f"readers would see {what}",
                f"Show {what} to its readers?",
                hint="run it with --yes",
                declined="nothing was changed",
            )
        now = rollback(ctx, version)
    click.echo(f"readers of {name} see version {now.number}: {output.count(now.rows, 'row')}")


@load_command.command("diff")
@click.argument("table")
@click.argument("old", type=int)
@click.argument("new", type=int)
@click.option("--sample", type=click.IntRange(0, 1000), default=5, show_default=True, help="Rows to show of a kind.")
@_as_json
def diff_command(table: str, old: int, new: int, sample: int, as_json: bool) -> None:
    """Say how two kept versions of a table differ, row by row."""
    from export_pipelines.steps.load import diff

    with _opened() as project:
        found = diff(_versioned(project, table)[1], old, new, sample=sample)
    if as_json:
        output.as_json(asdict(found))
        return
    click.echo(f"{output.count(found.added, 'row')} added, {found.removed:,} removed, {found.changed:,} changed")
    lines = [("+", row) for row in found.added_rows] + [("-", row) for row in found.removed_rows]
    lines += [line for before, after in found.changed_rows for line in (("-", before), ("+", after))]
    if lines:
        output.table(output.columns("", *found.columns), [[sign, *row] for sign, row in lines])


@load_command.command("ignore")
@click.argument("table")
@click.argument("file")
@click.option("--reason", default="ignored by hand", show_default=True, help="Written into the registry.")
def ignore_command(table: str, file: str, reason: str) -> None:
    """Leave a landed FILE out: it waits no longer and is never loaded. What is loaded stays.

    If it landed several times, with other content each time, those that failed to load are left out, or else all that
    wait.

    \b
      export-pipelines load ignore shop/orders orders-2025-01.csv --reason 'sent by mistake'
    """
    from export_pipelines.steps.load import ignore, waiting_by_name

    with _opened() as project:
        ctx = _context(project, one(project, table))
        found = waiting_by_name(ctx, file)
        if not found:
            raise RequestError(f"no file {file!r} of {ctx.load.id} waits", hint="`export-pipelines load status`")
        for each in found:
            ignore(ctx, each, reason)
    click.echo(f"{file} of {ctx.load.id} is left out")


# What the commands work on


@contextmanager
def _opened(*, everything: bool = False) -> Iterator[Opened]:
    """The project; where `everything` is meant, with a word on what is broken and left out."""
    from export_pipelines.cli.project import opened, warn_of_broken

    with opened() as project:
        if everything:
            warn_of_broken(project.project)
        yield project


def _refuse_names(found: Sequence[LoadAssets | TransformAssets], files: Sequence[str], keys: Sequence[str]) -> None:
    from export_pipelines.components.load_assets import LoadAssets

    for each in found:
        spec = each.load.spec if isinstance(each, LoadAssets) else None
        if files and not (spec and spec.by_file):
            raise RequestError(f"{each.definition.id} has no files that could be named", hint="leave out --file")
        if keys and not (spec and spec.partitions):
            raise RequestError(f"{each.definition.id} has no windows", hint="leave out --partition")


def _versioned(project: Opened, name: str) -> tuple[str, Versioned]:
    """The table that is loaded, or that a transform makes: its own name, and what its versions are asked with."""
    from export_pipelines.components.load_assets import LoadAssets
    from export_pipelines.steps.transform import TransformContext

    (assets,) = chosen_any(project, [name])
    target = assets.definition.spec.target
    if isinstance(assets, LoadAssets):
        return target.table, _context(project, assets)
    if assets.transform.spec.materialize != "table":
        raise RequestError(f"{assets.transform.id} is no table, so it has no versions")
    return target.table, TransformContext(assets.transform, project.resource(target.connection))


def _context(project: Opened, assets: LoadAssets) -> LoadContext:
    from export_pipelines.steps.load import LoadContext

    spec = assets.load.spec
    return LoadContext(assets.load, project.resource(spec.target.connection), project.resource(spec.landing))


def _described(each: LoadAssets | TransformAssets) -> dict[str, Any]:
    from export_pipelines.cli.tables import cadence
    from export_pipelines.components.load_assets import LoadAssets

    if not isinstance(each, LoadAssets):
        return _described_transform(each.transform)
    spec = each.load.spec
    return {
        "table": each.load.id,
        "source": spec.source.type,
        "style": spec.style.value,
        "target": spec.target.table,
        "connection": spec.target.connection,
        "partitions": "by file" if spec.by_file else cadence(spec.partitions) if spec.partitions else None,
        "folder": str(each.load.folder),
        "version": each.load.version,
    }


def _described_transform(transform: TransformDefinition) -> dict[str, Any]:
    return {
        "table": transform.id,
        "source": "transform",
        "style": transform.spec.materialize,
        "target": transform.spec.target.table or None,
        "connection": transform.spec.target.connection,
        "partitions": None,
        "folder": str(transform.folder),
        "version": transform.version,
    }


_REGISTRY = """
SELECT landing, (array_agg(state ORDER BY id DESC))[1], (array_agg(coalesce(error_message, '') ORDER BY id DESC))[1],
  (array_agg(coalesce(quarantined, 0) ORDER BY id DESC))[1], max(updated)
FROM operations.datafile_registry WHERE target_table = %s AND source = %s GROUP BY landing
"""


def _data_sets(ctx: LoadContext) -> list[LoadContext]:
    """A table by itself; of an area for uploads, the tables that people made."""
    from export_pipelines.specs.load_sources import UploadSource
    from export_pipelines.specs.uploads import upload_definition
    from export_pipelines.targets import registry, schema

    if not isinstance(ctx.load.spec.source, UploadSource):
        return [ctx]
    organisations = ctx.load.spec.source.organisations
    with ctx.target.session(read_only=False) as session:
        schema.ensure(session)
        session.begin()
        beginning = f"{ctx.load.landed_as}/"
        names = [each.removeprefix(beginning) for each in registry.sources(session, beginning)]
    pairs = [next(((o, name[len(o) + 1 :]) for o in organisations if name.startswith(f"{o}_")), None) for name in names]
    return [replace(ctx, load=upload_definition(ctx.load, *pair)) for pair in pairs if pair]


def _status(ctx: LoadContext) -> dict[str, Any]:
    from export_pipelines.steps.load import landed_files, pending, table_versions
    from export_pipelines.targets.registry import landing_id

    files = {landing_id(each): each for each in landed_files(ctx)}
    waiting = pending(ctx, files.values())
    current = next((each for each in table_versions(ctx) if each.current), None)
    with ctx.target.session() as session:
        session.begin()
        entries = session.execute(_REGISTRY, (ctx.load.spec.target.table, ctx.load.landed_as))
    loaded = [row for row in entries if row[1] == "processed"]
    failed = {row[0] for row in entries if row[1] == "failed"}
    return {
        "table": ctx.load.id,
        "target": ctx.load.spec.target.table,
        "landed": len(files),
        "loaded": len(loaded),
        "waiting": sum(landing_id(each) not in failed for each in waiting),
        "failed": len(failed),
        "rows": current.rows if current else 0,
        "quarantined": sum(row[3] for row in loaded),
        "version": current.number if current else None,
        "last_load": max((row[4] for row in loaded), default=None),
        "failures": [{"file": _name(files.get(row[0])), "error": row[2]} for row in entries if row[1] == "failed"],
    }


def _name(landed: LandedManifest | None) -> str:
    return landed.name if landed else "a file that is not in the store"
