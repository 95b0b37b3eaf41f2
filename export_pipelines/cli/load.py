"""The command `load`: files, databases and APIs into tables of PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from export_pipelines.cli import output
from export_pipelines.errors import RequestError, SpecErrors

if TYPE_CHECKING:
    from export_pipelines.cli.launch import Event, Launcher
    from export_pipelines.cli.project import Opened
    from export_pipelines.components.load_assets import LoadAssets
    from export_pipelines.components.transforms import TransformAssets
    from export_pipelines.manifest import LandedManifest
    from export_pipelines.specs.transform import TransformDefinition
    from export_pipelines.steps.load import LoadContext, Versioned

T = TypeVar("T")
A = TypeVar("A", bound="LoadAssets | TransformAssets")

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
    """
    if bool(tables) == everything:
        raise click.UsageError("name tables, or give --all")
    if land_only and no_land:
        raise click.UsageError("with --land-only and --no-land nothing would be done")
    config = {"force": force, "names": [*files, *keys], "land": not no_land, "load": not land_only}
    with _opened() as project:
        found = in_order(chosen_any(project, tables))
        _refuse_names(found, files, keys)
        results = run_loads(project, found, config)
    tell(results, as_json=as_json)
    return 1 if any(each["errors"] for each in results) else 0


@load_command.command("status")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@_as_json
def status_command(tables: tuple[str, ...], as_json: bool) -> None:
    """Say of each table what landed, what is loaded, what waits and what failed."""
    with _opened() as project:
        found = [_status(project, each) for each in chosen(project, tables)]
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
@click.option("--yes", is_flag=True, help="Do not ask.")
def rollback_command(table: str, version: int, yes: bool) -> None:
    """Make a kept version the one that readers see.

    Files that were loaded since then are not loaded again by themselves: `load run --force` does that. A transform
    makes a newer version when it runs next.
    """
    from export_pipelines.steps.load import rollback

    with _opened() as project:
        name, ctx = _versioned(project, table)
        if not yes and not click.confirm(f"show version {version} of {name} to its readers?"):
            raise click.Abort
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
    click.echo(f"{found.added:,} rows added, {found.removed:,} removed, {found.changed:,} changed")
    lines = [("+", row) for row in found.added_rows] + [("-", row) for row in found.removed_rows]
    lines += [line for before, after in found.changed_rows for line in (("-", before), ("+", after))]
    if lines:
        output.table(output.columns("", *found.columns), [[sign, *row] for sign, row in lines])


@load_command.command("ignore")
@click.argument("table")
@click.argument("file")
@click.option("--reason", default="ignored by hand", show_default=True, help="Written into the registry.")
def ignore_command(table: str, file: str, reason: str) -> None:
    """Leave a landed FILE out: it waits no longer and is never loaded. What is loaded stays."""
    from export_pipelines.steps.load import ignore, pending

    with _opened() as project:
        ctx = _context(project, one(project, table))
        found = [each for each in pending(ctx) if each.name == file]
        if not found:
            raise RequestError(f"no file {file!r} of {ctx.load.id} waits", hint="`export-pipelines load status`")
        for each in found:
            ignore(ctx, each, reason)
    click.echo(f"{file} of {ctx.load.id} is left out")


# What the commands work on


@contextmanager
def _opened() -> Iterator[Opened]:
    from export_pipelines.cli.project import opened

    with opened() as project:
        yield project


def chosen(project: Opened, names: Sequence[str]) -> list[LoadAssets]:
    """The tables to load of some ids, names or patterns; all of them without names.

    Raises:
        RequestError: there is none of a name or pattern, or more than one of a name.
        SpecErrors: the table is broken.
    """
    return list(_matching(project, names, project.project.loads).values())


def chosen_any(project: Opened, names: Sequence[str]) -> list[LoadAssets | TransformAssets]:
    """The same, with transforms."""
    known: dict[str, LoadAssets | TransformAssets] = {**project.project.loads, **project.project.transforms}
    return list(_matching(project, names, known).values())


def _matching(project: Opened, names: Sequence[str], known: Mapping[str, T]) -> dict[str, T]:
    from export_pipelines.cli.project import fits, is_pattern

    if not names:
        return dict(known)
    found: dict[str, T] = {}
    for name in names:
        if is_pattern(name):
            same = {each: known[each] for each in known if fits(name, each)}
            if not same:
                raise RequestError(f"{name!r} matches no table to load", hint="`export-pipelines load list`")
            found |= same
        else:
            table = _named(project, name, known)
            found[table] = known[table]
    return found


def one(project: Opened, name: str) -> LoadAssets:
    """The table to load of an id, or of a name that only one has."""
    return project.project.loads[_named(project, name, project.project.loads)]


def _named(project: Opened, name: str, known: Mapping[str, T]) -> str:
    """The id of what has an id or a name."""
    from export_pipelines.specs.documents import suggest

    if name.strip("/") in known:
        return name.strip("/")
    same = [each for each in known if each.rpartition("/")[2] == name]
    if len(same) == 1:
        return same[0]
    if same:
        raise RequestError(f"{len(same)} tables to load are named {name!r}", hint=f"say which: {', '.join(same)}")
    if broken := project.broken(name):
        raise SpecErrors(broken.errors)
    if name in project.project.transforms:
        raise RequestError(f"{name} is a transform, and loads no files", hint="`load run` runs it")
    near = suggest(name, [*known, *(each.rpartition("/")[2] for each in known)])
    raise RequestError(f"there is no table {name!r} to load", hint=near or "`export-pipelines load list` shows them")


def in_order(found: Sequence[A]) -> list[A]:
    """Those that others wait for come first."""
    left = {each.definition.id: each for each in found}
    done: list[A] = []
    while left:
        ready = [each for each in left.values() if not any(name in left for name in _upstream(each))]
        for each in ready or list(left.values()):
            done.append(left.pop(each.definition.id))
    return done


def _upstream(each: LoadAssets | TransformAssets) -> tuple[str, ...]:
    from export_pipelines.components.load_assets import LoadAssets

    return each.load.spec.upstream if isinstance(each, LoadAssets) else each.upstream


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
  (array_agg(coalesce(rows, 0) ORDER BY id DESC))[1], (array_agg(coalesce(quarantined, 0) ORDER BY id DESC))[1],
  max(updated)
FROM operations.datafile_registry WHERE target_table = %s GROUP BY landing
"""


def _status(project: Opened, assets: LoadAssets) -> dict[str, Any]:
    from export_pipelines.steps.load import landed_files, pending, table_versions
    from export_pipelines.targets.registry import landing_id

    ctx = _context(project, assets)
    files = {landing_id(each): each for each in landed_files(ctx)}
    waiting = pending(ctx, files.values())
    current = next((each for each in table_versions(ctx) if each.current), None)
    with ctx.target.session() as session:
        session.begin()
        entries = session.execute(_REGISTRY, (ctx.load.spec.target.table,))
    loaded = [row for row in entries if row[1] == "processed"]
    return {
        "table": assets.load.id,
        "target": ctx.load.spec.target.table,
        "landed": len(files),
        "loaded": len(loaded),
        "waiting": len(waiting),
        "failed": sum(row[1] == "failed" for row in entries),
        "rows": sum(row[3] for row in loaded),
        "quarantined": sum(row[4] for row in loaded),
        "version": current.number if current else None,
        "last_load": max((row[5] for row in loaded), default=None),
        "failures": [{"file": _name(files.get(row[0])), "error": row[2]} for row in entries if row[1] == "failed"],
    }


def _name(landed: LandedManifest | None) -> str:
    return landed.name if landed else "a file that is not in the store"


# Runs


def run_loads(
    project: Opened, found: Sequence[LoadAssets | TransformAssets], config: dict[str, Any]
) -> list[dict[str, Any]]:
    """Run the jobs of some tables, one after the other; a failed one does not keep the others from being tried."""
    import dagster as dg

    from export_pipelines.cli.launch import Launcher, terminal

    with dg.DagsterInstance.get() as instance, terminal() as stream:
        launcher = Launcher(instance, project.project.definitions(), project.settings.root)
        launcher.end_orphans()
        bar = output.bar(stream)
        try:
            results = [_run(launcher, each, config, bar) for each in found]
        except BaseException:
            bar.fail()
            raise
        bar.close()
    return results


def _run(
    launcher: Launcher, assets: LoadAssets | TransformAssets, config: dict[str, Any], bar: output.Bar
) -> dict[str, Any]:
    import dagster as dg

    from export_pipelines.components.load_assets import LoadAssets, load_op_name

    table = assets.definition.id
    told: dict[str, Any] = {"table": table, "landed": 0, "loaded": 0, "rows": 0, "quarantined": 0, "files": []}
    bar.start(f"{'loading' if isinstance(assets, LoadAssets) else 'making'} {table}", 1)
    begun = time.monotonic()

    def heard(event: Event) -> None:
        if event.kind != "materialization":
            return
        if event.step == "land":
            told["landed"] += 1 if event.metadata.get("file") else 0
        elif event.step == "transform":
            told["rows"] += int(event.metadata.get("rows", 0))
        elif event.step == "load":
            told["loaded"] += event.metadata["action"] not in ("already", "superseded")
            told["rows"] += int(event.metadata["rows"])
            told["quarantined"] += int(event.metadata["quarantined"])
            names = ("file", "action", "rows", "quarantined", "table_version", "seconds")
            told["files"].append({name: event.metadata[name] for name in names})
        bar.update(0, f"{told['landed']} landed, {told['loaded']} loaded, {told['rows']:,} rows")

    run = {"ops": {load_op_name(table): {"config": config}}} if isinstance(assets, LoadAssets) else {}
    result = launcher.run(dg.RunRequest(job_name=assets.job.name, run_config=run), heard)
    bar.update(1, f"{told['landed']} landed, {told['loaded']} loaded, {told['rows']:,} rows")
    if result.status == "CANCELED":
        raise click.Abort
    failed = [] if result.succeeded else [result.failure or "; ".join(result.errors) or f"the run is {result.status}"]
    return {**told, "seconds": round(time.monotonic() - begun, 3), "run": result.run_id, "errors": failed}


def tell(results: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print the results, and every failure with its hint."""
    if as_json:
        output.as_json(list(results))
        return
    heads = ("table", "landed", "loaded", "rows", "quarantined", "seconds")
    output.table(
        output.columns(*(f"#{each}" if each != "table" else each for each in heads)),
        [[each[name] for name in heads] for each in results],
    )
    for each in results:
        for error in each["errors"]:
            click.secho(f"error: {each['table']}: {error}", err=True, fg="red")
