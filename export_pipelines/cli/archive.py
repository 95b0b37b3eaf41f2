"""Commands that work on what is archived and stored: adopt, sweep; and how the others find it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output
from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from export_pipelines.cli.project import Opened
    from export_pipelines.steps.context import Progress
    from export_pipelines.stores.base import Store


@contextmanager
def following(name: str) -> Iterator[Callable[[Progress], None]]:
    """A bar for a step that does not know how much there is to do."""
    bar = output.bar()
    bar.start(name, None)
    try:
        yield lambda at: bar.update(0, f"{at.partition}: {output.count(at.rows, 'row')}, {output.size(at.bytes)}")
    except BaseException:
        bar.fail()
        raise
    bar.close()


def archived_tables(project: Opened, names: Sequence[str]) -> list[tuple[Store, str]]:
    """The archives and the tables in them, those too that are defined no more."""
    from export_pipelines.cli.project import fits, is_pattern
    from export_pipelines.steps.verify import tables_in

    stores = {key: project.resource(key) for key in archive_keys(project)}
    if not names:
        return [(store, table) for store in stores.values() for table in tables_in(store)]
    found = []
    for name in names:
        if is_pattern(name):
            matching = [(store, each) for store in stores.values() for each in tables_in(store) if fits(name, each)]
            found += matching or [(project.archive(table), table.id) for table in project.tables([name])]
            continue
        old = [(store, name) for store in stores.values() if name in tables_in(store)]
        try:
            table = project.table(name)
        except RequestError:
            if not old:
                raise
            found += old
        else:
            found.append((project.archive(table), table.id))
    return found


def archive_keys(project: Opened) -> list[str]:
    """Names of the archives that tables use, or of the default one; none of a project that only loads and has none."""
    used = {each.table.spec.archive for each in project.project.tables.values()}
    if not used and project.project.loads and "archive" not in project.project.resources:
        return []
    return sorted(used or {"archive"})


@click.command("adopt")
@click.argument("table")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Read everything, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def adopt_command(table: str, folder: Path, dry_run: bool, as_json: bool) -> int:
    """Take the files that an older export service left in FOLDER into the archive of TABLE.

    Each is parsed, counted, hashed and copied, and gets a manifest that says that it was adopted. FOLDER is not
    changed. Exit code 1 when a file could not be taken.
    """
    from export_pipelines.cli.project import opened
    from export_pipelines.steps.adopt import adopt_folder

    with opened() as project, following(f"adopting {folder}") as progress:
        found = project.table(table)
        adopted = adopt_folder(
            found,
            folder,
            project.archive(found),
            project.catalog,
            dry_run=dry_run,
            progress=progress,
            signer=project.signing.signer,
        )
    problems = [each for each in adopted if each.problem]
    if as_json:
        output.as_json([asdict(each) for each in adopted])
        return 1 if problems else 0
    rows: list[list[Any]] = [
        [each.file.name, each.partition, each.rows, output.size(each.bytes), _fate(each.problem, each.new, dry_run)]
        for each in adopted
    ]
    output.table(output.columns("file", "partition", "#rows", "#bytes", "result"), rows)
    if not adopted:
        click.echo(f"{folder} has no files whose names begin with {found.name}-")
    if any(each.early for each in adopted):
        task = not (found.folder / "defs.yaml").exists()
        where = "DSL_START in the environment or in .env" if task else f"`start` in {found.folder / 'defs.yaml'}"
        output.note(f"hint: to adopt the older files too, set {where} to the day of the oldest of them or before")
    return 1 if problems else 0


def _fate(problem: str, new: bool, dry_run: bool) -> str:
    if problem:
        return problem
    if not new:
        return "adopted before"
    return "would be adopted" if dry_run else "adopted"


@click.command("sweep")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--grace", default=24.0, show_default=True, type=click.FloatRange(0), help="Hours that leftovers stay.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def sweep_command(tables: tuple[str, ...], grace: float, dry_run: bool, as_json: bool) -> None:
    """Remove temporaries and files that broken-off attempts left behind.

    Only what no manifest and no record names, and what was last written longer ago than the grace period.
    """
    from export_pipelines.cli.project import opened
    from export_pipelines.steps.sweep import sweep

    with opened() as project:
        contexts = [project.step(table) for table in project.tables(tables)]
        swept = sweep(contexts, grace_seconds=grace * 3600, dry_run=dry_run)
    if as_json:
        output.as_json({"dry_run": dry_run, "removed": swept})
        return
    for each in swept:
        click.echo(each)
    click.echo(f"{len(swept)} objects {'would be' if dry_run else 'were'} removed")
