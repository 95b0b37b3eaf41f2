"""Tables to load, as far as they depend on what is in resources/ and on each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from export_pipelines.components.load_assets import load_assets
from export_pipelines.components.load_run import load_key
from export_pipelines.components.resources import (
    MysqlConnectionResource,
    PostgresConnectionResource,
    StoreResource,
)
from export_pipelines.components.tables import asset_key
from export_pipelines.errors import SpecError
from export_pipelines.specs.documents import Document, load_documents, suggest
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.specs.load_sources import DatabaseSource, TableSource
from export_pipelines.specs.loader import BrokenFolder

if TYPE_CHECKING:
    from export_pipelines.components.project import Project


def add_loads(project: Project, found: Mapping[str, LoadDefinition]) -> None:
    """Add the tables to load. One that is broken breaks those that name it, too, and no others."""
    left = dict(found)
    while True:
        broken = {load.id: errors for load in left.values() if (errors := list(_problems(project, load, left)))}
        if not broken:
            break
        for name, errors in broken.items():
            _break(project, left.pop(name), errors)
    for load in left.values():
        source = load.spec.source
        origin = left[source.table] if isinstance(source, TableSource) else None
        upstream = [_last_key(project, left, name) for name in load.spec.upstream]
        try:
            project.loads[load.id] = load_assets(load, project.resources, upstream, origin)
        except Exception as error:  # Dagster's own rules, of names, owners, tags …
            _break(project, load, [SpecError(f"Dagster refuses it: {error}", file=load.folder / "defs.yaml")])


def _break(project: Project, load: LoadDefinition, errors: list[SpecError]) -> None:
    project.broken.append(BrokenFolder(load.name, load.group, load.folder, errors))


def _problems(project: Project, load: LoadDefinition, all_loads: Mapping[str, LoadDefinition]) -> Iterator[SpecError]:
    document = load_documents(load.folder / "defs.yaml")[0]
    yield from _resource_problems(project, load, document)
    known = [*all_loads, *project.tables]
    source = load.spec.source
    if isinstance(source, TableSource) and source.table not in all_loads:
        hint = suggest(source.table, list(all_loads)) or "it is the id of another table to load"
        yield document.error(f"there is no table {source.table!r} to load (or it is broken)", ("source", "table"), hint)
    for number, name in enumerate(load.spec.depends):
        if name not in known:
            message = f"there is no table {name!r} (or it is broken)"
            yield document.error(message, ("depends", number), suggest(name, known))
    if circle := _circle(load.id, all_loads):
        yield document.error(f"tables wait for each other: {' → '.join(circle)}", ("depends",))


def _resource_problems(project: Project, load: LoadDefinition, document: Document) -> Iterator[SpecError]:
    spec, resources = load.spec, project.resources
    databases: tuple[type, ...] = (PostgresConnectionResource, MysqlConnectionResource)
    wanted: list[tuple[tuple[str, ...], str, tuple[type, ...], str]] = [
        (("target", "connection"), spec.target.connection, databases[:1], "connection to PostgreSQL"),
        (("landing",), spec.landing, (StoreResource,), "store"),
    ]
    if isinstance(spec.source, DatabaseSource) and spec.source.connection:
        wanted.append((("source", "connection"), spec.source.connection, databases, "connection"))
    for path, name, kinds, what in wanted:
        if not isinstance(resources.get(name), kinds):
            fit = sorted(key for key, each in resources.items() if isinstance(each, kinds))
            hint = suggest(name, fit) or f"known are {', '.join(fit) or 'none'}"
            yield document.error(f"there is no {what} {name!r} in resources/ (or it is broken)", path, hint)


def _circle(start: str, all_loads: Mapping[str, LoadDefinition]) -> list[str]:
    """A way from a table back to itself by what comes before it; empty if there is none."""
    ways, seen = [[start]], set[str]()
    while ways:
        way = ways.pop()
        for name in all_loads[way[-1]].spec.upstream if way[-1] in all_loads else ():
            if name == start:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []


def _last_key(project: Project, all_loads: Mapping[str, LoadDefinition], name: str) -> dg.AssetKey:
    """The asset that stands for all of a table."""
    return load_key(name) if name in all_loads else asset_key(project.tables[name].table, "archive")
