"""What was found below assets/: definitions, and folders that are broken; kept apart by their ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from export_pipelines import naming
from export_pipelines.errors import SpecError
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.specs.table import TableDefinition
from export_pipelines.specs.transform import TransformDefinition

FILES = ("defs.yaml", "select.sql", "delete.sql")
"""The files that define a table."""


@dataclass(frozen=True)
class BrokenFolder:
    """A folder that should be a definition and cannot be one; shown with its errors."""

    name: str
    group: str
    folder: Path
    errors: list[SpecError]

    @property
    def id(self) -> str:
        """`group/name`, as of a table."""
        return f"{self.group}/{self.name}"


@dataclass(frozen=True)
class Loaded:
    """All definitions by id, in the order of their folders, and the folders that are broken."""

    tables: dict[str, TableDefinition] = field(default_factory=dict)
    datasets: dict[str, DataSetDefinition] = field(default_factory=dict)
    """Those of folders of their own, and by their ids those tables that are data sets, too."""
    loads: dict[str, LoadDefinition] = field(default_factory=dict)
    """Tables to load."""
    transforms: dict[str, TransformDefinition] = field(default_factory=dict)
    broken: list[BrokenFolder] = field(default_factory=list)

    @property
    def errors(self) -> list[SpecError]:
        """Every error of every broken folder."""
        return [error for folder in self.broken for error in folder.errors]


Definition = TableDefinition | DataSetDefinition | LoadDefinition | TransformDefinition


@dataclass(frozen=True)
class Found:
    """What a folder defines: a table, a data set, both in one, a table to load, or a transform."""

    table: TableDefinition | None
    dataset: DataSetDefinition | None
    load: LoadDefinition | None = None
    transform: TransformDefinition | None = None

    @property
    def either(self) -> Definition:
        """What has the folder's name, group and id."""
        found = self.table or self.dataset or self.load or self.transform
        assert found is not None
        return found


def keep_apart(found: Iterable[Found], loaded: Loaded) -> None:
    """Put what was found into `loaded`. Equal ids (case and normalisation aside) break both folders, since nobody can
    say which is meant; of equal file names, and of loads into the same table, the later folder is broken."""
    by_id: dict[str, list[Found]] = {}
    for each in found:
        by_id.setdefault(naming.fold(each.either.id), []).append(each)
    names: dict[tuple[str, str], TableDefinition] = {}
    targets: dict[tuple[str, str], LoadDefinition | TransformDefinition] = {}
    for same in by_id.values():
        if len(same) > 1:
            loaded.broken.extend(_twin(each, same) for each in same)
            continue
        table, dataset, load = same[0].table, same[0].dataset, same[0].load
        if table is not None:
            first = names.setdefault((table.spec.store, naming.fold(naming.file_pattern(table))), table)
            if first is not table:
                loaded.broken.append(_same_files(table, first))
                continue
            loaded.tables[table.id] = table
        if dataset is not None:
            loaded.datasets[dataset.id] = dataset
        made = load or same[0].transform
        if made is not None:
            other = targets.setdefault(_target_of(made), made)
            if other is not made:
                loaded.broken.append(_same_target(made, other))
            elif isinstance(made, TransformDefinition):
                loaded.transforms[made.id] = made
            else:
                loaded.loads[made.id] = made


def _target_of(made: LoadDefinition | TransformDefinition) -> tuple[str, str]:
    """What it makes; of statements, which have no name, something that no other has."""
    return made.spec.target.connection, made.spec.target.table or str(made.folder)


def _twin(each: Found, same: list[Found]) -> BrokenFolder:
    own, other = each.either, next(other.either for other in same if other is not each)
    what = "data set" if each.dataset and not each.table else "table"
    message = f"{what} {own.id!r} is also defined in {other.folder}" + (f" as {other.id!r}" * (other.id != own.id))
    hint = "rename one of the folders; names must differ by more than case"
    return _broken(own, SpecError(message, file=_source(own), hint=hint))


def _same_files(table: TableDefinition, first: TableDefinition) -> BrokenFolder:
    message = f"writes files of the same names as {first.id!r} in {first.folder}"
    hint = "use {group} in file_name, or another store"
    return _broken(table, SpecError(message, file=_source(table), field="file_name", hint=hint))


def _same_target(
    own: LoadDefinition | TransformDefinition, first: LoadDefinition | TransformDefinition
) -> BrokenFolder:
    doing = "loads into" if isinstance(own, LoadDefinition) else "makes"
    message = f"{doing} {own.spec.target.table}, as {first.id!r} in {first.folder} does"
    return _broken(own, SpecError(message, file=_source(own), field="target.table", hint="name another table"))


def _broken(own: Definition, error: SpecError) -> BrokenFolder:
    return BrokenFolder(own.name, own.group, own.folder, [error])


def _source(own: Definition) -> Path:
    return next((own.folder / name for name in FILES if (own.folder / name).exists()), own.folder)
