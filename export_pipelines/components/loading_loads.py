"""Tables to load and transforms, as far as they depend on what is in resources/ and on each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from export_pipelines.components.load_assets import load_assets
from export_pipelines.components.load_telling import load_key
from export_pipelines.components.loading_transforms import Makers, parsed
from export_pipelines.components.resources import (
    MysqlConnectionResource,
    PostgresConnectionResource,
    StoreResource,
)
from export_pipelines.components.tables import asset_key
from export_pipelines.components.transforms import transform_assets, transform_key
from export_pipelines.errors import SpecError
from export_pipelines.specs.documents import Document, load_documents, suggest
from export_pipelines.specs.load import LoadDefinition, LoadSpec
from export_pipelines.specs.load_sources import DatabaseSource, TableSource
from export_pipelines.specs.loader import BrokenFolder
from export_pipelines.specs.transform import TransformDefinition
from export_pipelines.steps.transform_sql import TransformSql

if TYPE_CHECKING:
    from export_pipelines.components.project import Project


Made = LoadDefinition | TransformDefinition


def add_loads(
    project: Project, loads: Mapping[str, LoadDefinition], transforms: Mapping[str, TransformDefinition]
) -> None:
    """Add the tables to load and the transforms. One that is broken breaks those that name it, too, and no others."""
    sql, wrong = parsed(transforms)
    left: dict[str, Made] = {**loads, **transforms}
    for name, error in wrong.items():
        _break(project, left.pop(name), [error])
    while True:
        makers = _makers(project, left, sql)
        ways = {each.id: _upstream(each, makers, sql) for each in left.values()}
        broken = {each.id: errors for each in left.values() if (errors := list(_problems(project, each, left, ways)))}
        if not broken:
            break
        for name, errors in broken.items():
            _break(project, left.pop(name), errors)
    for each in left.values():
        try:
            if isinstance(each, TransformDefinition):
                _add_transform(project, each, left, makers, sql[each.id])
            else:
                _add_load(project, each, left)
        except Exception as error:  # Dagster's own rules, of names, owners, tags …
            _break(project, each, [SpecError(f"Dagster refuses it: {error}", file=each.folder / "defs.yaml")])


def _add_load(project: Project, load: LoadDefinition, left: Mapping[str, Made]) -> None:
    source = load.spec.source
    origin = left[source.table] if isinstance(source, TableSource) else None
    upstream = [_last_key(project, left, name) for name in load.spec.upstream]
    project.loads[load.id] = load_assets(load, project.resources, upstream, origin)


def _add_transform(
    project: Project, transform: TransformDefinition, left: Mapping[str, Made], makers: Makers, sql: TransformSql
) -> None:
    made, exported, unknown = makers.of(transform, sql)
    upstream = list(dict.fromkeys([*made, *transform.spec.depends]))
    keys = [_last_key(project, left, name) for name in upstream]
    keys += [asset_key(project.tables[name].table, "source") for name in exported]
    project.transforms[transform.id] = transform_assets(transform, project.resources, sql, upstream, keys, unknown)


def _makers(project: Project, left: Mapping[str, Made], sql: Mapping[str, TransformSql]) -> Makers:
    makers = Makers()
    makers.add_loads(each for each in left.values() if isinstance(each, LoadDefinition))
    for each in left.values():
        if isinstance(each, TransformDefinition):
            makers.add_transform(each, sql[each.id])
    makers.add_tables(each.table for each in project.tables.values())
    return makers


def _upstream(made: Made, makers: Makers, sql: Mapping[str, TransformSql]) -> tuple[str, ...]:
    """Ids of what comes before."""
    if isinstance(made, LoadDefinition):
        return made.spec.upstream
    return (*makers.of(made, sql[made.id])[0], *made.spec.depends)


def _break(project: Project, made: Made, errors: list[SpecError]) -> None:
    project.broken.append(BrokenFolder(made.name, made.group, made.folder, errors))


def _problems(
    project: Project, made: Made, left: Mapping[str, Made], ways: Mapping[str, tuple[str, ...]]
) -> Iterator[SpecError]:
    document = load_documents(made.folder / "defs.yaml")[0]
    yield from _resource_problems(project, made, document)
    known = [*left, *project.tables]
    source = made.spec.source if isinstance(made, LoadDefinition) else None
    if isinstance(source, TableSource) and not _has_table(left.get(source.table)):
        hint = suggest(source.table, list(left)) or "it is the id of another table to load, or of a transform"
        yield document.error(f"there is no table {source.table!r} to load (or it is broken)", ("source", "table"), hint)
    if isinstance(made, LoadDefinition) and made.spec.moved_from and (other := _still_there(made, left.values())):
        message = f"what landed for {made.spec.moved_from!r} belongs to {other!r}"
        yield document.error(message, ("moved_from",), "a definition that was moved is no longer where it was")
    for number, name in enumerate(made.spec.depends):
        if name not in known:
            message = f"there is no table {name!r} (or it is broken)"
            yield document.error(message, ("depends", number), suggest(name, known))
    if circle := _circle(made.id, ways):
        yield document.error(f"tables wait for each other: {' → '.join(circle)}", ("depends",))


def _still_there(load: LoadDefinition, others: Iterable[Made]) -> str | None:
    """Who else goes on with the files that landed for what a definition was moved from."""
    own = (load.spec.landing, load.landed_as)
    loads = (each for each in others if isinstance(each, LoadDefinition) and each is not load)
    return next((each.id for each in loads if (each.spec.landing, each.landed_as) == own), None)


def _has_table(made: Made | None) -> bool:
    """Whether there is something that rows can be copied from."""
    return made is not None and bool(made.spec.target.table)


def _resource_problems(project: Project, made: Made, document: Document) -> Iterator[SpecError]:
    spec, resources = made.spec, project.resources
    databases: tuple[type, ...] = (PostgresConnectionResource, MysqlConnectionResource)
    wanted: list[tuple[tuple[str, ...], str, tuple[type, ...], str]] = [
        (("target", "connection"), spec.target.connection, databases[:1], "connection to PostgreSQL"),
    ]
    if isinstance(spec, LoadSpec):
        wanted.append((("landing",), spec.landing, (StoreResource,), "store"))
    if isinstance(spec, LoadSpec) and isinstance(spec.source, DatabaseSource) and spec.source.connection:
        wanted.append((("source", "connection"), spec.source.connection, databases, "connection"))
    for path, name, kinds, what in wanted:
        if not isinstance(resources.get(name), kinds):
            fit = sorted(key for key, each in resources.items() if isinstance(each, kinds))
            hint = suggest(name, fit) or f"known are {', '.join(fit) or 'none'}"
            yield document.error(f"there is no {what} {name!r} in resources/ (or it is broken)", path, hint)


def _circle(start: str, upstream: Mapping[str, tuple[str, ...]]) -> list[str]:
    """A way from a table back to itself by what comes before it; empty if there is none."""
    ways, seen = [[start]], set[str]()
    while ways:
        way = ways.pop()
        for name in upstream.get(way[-1], ()):
            if name == start:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []


def _last_key(project: Project, left: Mapping[str, Made], name: str) -> dg.AssetKey:
    """The asset that stands for all of a table."""
    if name not in left:
        return asset_key(project.tables[name].table, "archive")
    return transform_key(name) if isinstance(left[name], TransformDefinition) else load_key(name)
