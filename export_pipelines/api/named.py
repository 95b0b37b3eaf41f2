"""What a name in an address means: an id, or the last part of one that only one has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from export_pipelines.api.users import Unknown
from export_pipelines.specs.documents import suggest


class _Definition(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...


DefinitionT = TypeVar("DefinitionT", bound=_Definition)


def named(kind: str, known: Mapping[str, DefinitionT], name: str, *, hint: str) -> DefinitionT:
    """The definition of an id, or of a name that one alone has. `kind` is what they are, `hint` where they are listed.

    Raises:
        Unknown: there is none, or more than one.
    """
    if found := known.get(name):
        return found
    same = [each for each in known.values() if each.name == name]
    if len(same) == 1:
        return same[0]
    if same:
        raise Unknown(f"{len(same)} {kind}s are named {name!r}", hint=f"one of {', '.join(each.id for each in same)}")
    near = suggest(name, [*known, *(each.name for each in known.values())])
    raise Unknown(f"there is no {kind} {name[:200]!r}", hint=near or hint)
