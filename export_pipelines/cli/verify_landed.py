"""`verify` of what has landed: files of tables to load, against their manifests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output
from export_pipelines.errors import ExportPipelinesError

if TYPE_CHECKING:
    from export_pipelines.components.project import Project
    from export_pipelines.specs.load import LoadDefinition


@dataclass(frozen=True)
class Landed:
    """The landed files of a table."""

    table: str
    files: int
    problems: tuple[str, ...]

    @property
    def intact(self) -> bool:
        return not self.problems


def tables_to_load(project: Project, names: tuple[str, ...]) -> tuple[dict[str, LoadDefinition], tuple[str, ...]]:
    """The tables to load that names or patterns mean (all without any), and the names that are left: of archives."""
    from export_pipelines.cli.project import fits, is_pattern

    known = {each.load.id: each.load for each in project.loads.values()}
    found = dict(known) if not names else {}
    left: list[str] = []
    for name in names:
        meant = {each: known[each] for each in known if fits(name, each)}
        clear = is_pattern(name) or len(meant) == 1
        if clear:
            found |= meant
        if not meant or not clear or any(fits(name, each) for each in project.tables):
            left.append(name)
    return found, tuple(left)


def check_tables(loads: Mapping[str, LoadDefinition], resources: Mapping[str, Any]) -> list[Landed]:
    """Read the landed files of tables again. What cannot be read is a problem of its table."""
    from export_pipelines.components.opening import open_resource
    from export_pipelines.steps.land import check_landed, read_singly

    found = []
    for name, load in loads.items():
        try:
            store = open_resource(resources, load.spec.landing)
            landed, problems = read_singly(store, load.landed_as)
            problems += check_landed(store, landed)
        except ExportPipelinesError as error:
            landed, problems = [], [error.message]
        if landed or problems:
            found.append(Landed(name, len(landed), tuple(problems)))
    return found


def landed_json(landed: Sequence[Landed]) -> list[dict[str, Any]]:
    """As the entries of `--json`."""
    return [
        {"table": each.table, "landed": each.files, "problems": list(each.problems), "intact": each.intact}
        for each in landed
    ]


def tell_landed(landed: Sequence[Landed], *, as_json: bool = False) -> None:
    """Print what was found."""
    if as_json:
        output.as_json(landed_json(landed))
        return
    if not landed:
        click.echo("nothing has landed")
        return
    rows: list[list[str | int]] = [
        [each.table, each.files, "intact" if each.intact else output.count(len(each.problems), "problem")]
        for each in landed
    ]
    output.table(output.columns("landed table", "#files", "result"), rows)
    for each in landed:
        for problem in each.problems:
            click.secho(f"error: {each.table}: {problem}", err=True, fg="red")
