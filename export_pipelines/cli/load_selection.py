"""Which tables to load, and transforms, a command is about, and in which order they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from export_pipelines.errors import RequestError, SpecErrors

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.components.load_assets import LoadAssets
    from export_pipelines.components.transforms import TransformAssets

T = TypeVar("T")
A = TypeVar("A", bound="LoadAssets | TransformAssets")


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
