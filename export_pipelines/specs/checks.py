"""What the fields and files of one table say against each other, and what Dagster would refuse later on, which would
take the whole code location down."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from export_pipelines import naming, windows
from export_pipelines.errors import SpecError
from export_pipelines.specs.dataset import DataSetSpec
from export_pipelines.specs.documents import Document
from export_pipelines.specs.table import CleanupMode, PartitionsSpec, TableDefinition, TableSpec

_SAMPLE = 40
"""Windows whose names are compared: more than the days of a month and the hours of a day."""

# As in dagster/_utils/tags.py and dagster/_core/utils.py.
_TAG_KEY = re.compile(r"([A-Za-z0-9_.-]{1,63}/)?[A-Za-z0-9_.-]{1,63}")
_TAG_VALUE = re.compile(r"[A-Za-z0-9_.-]{0,63}")
_OWNER = re.compile(r"team:.+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")


def is_there(path: Path) -> bool:
    """Whether there is anything of that name, be it a link to nowhere."""
    return path.exists() or path.is_symlink()


def problems(document: Document, spec: TableSpec, texts: Mapping[str, str]) -> Iterator[SpecError]:
    """Every error in a table whose fields are valid each by itself. `texts` are its SQL files that could be read."""
    yield from _file_problems(document, spec, texts)
    bad_windows = windows.problems(spec.partitions) if spec.partitions else []
    for name, message in bad_windows:
        yield document.error(message, ("partitions", name))
    bad_names = naming.template_problems(spec.file_name, partitioned=spec.partitions is not None)
    for message in bad_names:
        yield document.error(message, ("file_name",))
    if not bad_windows and not bad_names:
        yield from _equal_names(document, spec)
    yield from dagster_problems(document, spec)
    if spec.pool is not None and not re.fullmatch(r"\S+", spec.pool):
        yield document.error("the name of a pool has no white space and is not empty", ("pool",))


def _equal_names(document: Document, spec: TableSpec) -> Iterator[SpecError]:
    """A template whose times are coarser than the partitions, which would give several of them one name."""
    if spec.partitions and "{partition}" not in spec.file_name and (pair := _clash(spec.partitions, spec.file_name)):
        message = f"partitions {pair[0]} and {pair[1]} would have the same name"
        yield document.error(message, ("file_name",), "use {partition}, or a finer time format")


@lru_cache(maxsize=256)
def _clash(partitions: PartitionsSpec, template: str) -> tuple[str, str] | None:
    """The first two partitions of one name. Remembered, since the tasks of an older service all ask the same."""
    spec = TableSpec(partitions=partitions, file_name=template)
    table = TableDefinition(name="t", group="g", folder=Path(), spec=spec)
    names: dict[str, str] = {}
    for window in windows.first_windows(partitions, _SAMPLE):
        other = names.setdefault(naming.file_key(table, window, 1), window.partition)
        if other != window.partition:
            return other, window.partition
    return None


def _file_problems(document: Document, spec: TableSpec, texts: Mapping[str, str]) -> Iterator[SpecError]:
    has_select, has_delete = "select.sql" in texts, "delete.sql" in texts
    if not has_select and not spec.table:
        there = is_there(document.file.parent / "select.sql")  # it is reported as unfit already
        if not there:
            hint = "give `table: schema.name`, or put a select.sql beside defs.yaml"
            yield document.error("neither `table` nor select.sql says what to export", hint=hint)
    if has_select and (spec.exclude_columns or spec.mask_columns):
        name = "exclude_columns" if spec.exclude_columns else "mask_columns"
        yield document.error("works on derived statements only, and there is a select.sql", (name,))
    unfit = is_there(document.file.parent / "delete.sql")
    if spec.cleanup.mode is not CleanupMode.OFF and not (spec.table or has_delete or unfit):
        yield document.error("neither `table` nor delete.sql says what to delete", ("cleanup", "mode"))
    if spec.cumulative and not has_select and spec.table:
        yield document.error("derived statements are never cumulative", ("cumulative",))
    if spec.cumulative and not spec.partitions:
        yield document.error("needs `partitions`", ("cumulative",))


def label_problems(document: Document, owners: Sequence[str], tags: Mapping[str, str]) -> Iterator[SpecError]:
    """What Dagster would refuse of owners and tags."""
    for number, owner in enumerate(owners):
        if not _OWNER.fullmatch(owner):
            yield document.error("is neither an e-mail address nor `team:name`", ("owners", number))
    for key, value in tags.items():
        if not _TAG_KEY.fullmatch(key) or not _TAG_VALUE.fullmatch(value):
            hint = "letters, digits, `_`, `-` and `.`, at most 63; a key may have one `/`"
            yield document.error("is not a tag that Dagster allows", ("tags", key), hint)


def dagster_problems(document: Document, spec: TableSpec | DataSetSpec) -> Iterator[SpecError]:
    """What Dagster would refuse of owners, tags and asset keys."""
    yield from label_problems(document, spec.owners, spec.tags)
    for number, key in enumerate(spec.depends_on):
        if not all(key.split("/")):
            yield document.error("an asset key is parts joined by `/`, none of them empty", ("depends_on", number))
