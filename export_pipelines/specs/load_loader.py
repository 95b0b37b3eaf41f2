"""Tables to load, found below assets/: folders of `type: export_pipelines.LoadTable`. See loader.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from export_pipelines import windows
from export_pipelines.errors import SpecError, SpecErrors
from export_pipelines.specs.checks import is_there, label_problems
from export_pipelines.specs.documents import Document, files_version, read_text, validate
from export_pipelines.specs.load import LoadDefinition, LoadSpec
from export_pipelines.specs.load_sources import DatabaseSource, RestSource
from export_pipelines.specs.table import PartitionsSpec

LOAD_TYPE = "export_pipelines.LoadTable"

_MIGRATION = re.compile(r"\d{3,}_[A-Za-z0-9_.-]+\.sql")
_OWN_FILES = ("defs.yaml", "select.sql")
_PERIODS = {"year": "%Y", "month": "%Y-%m", "day": "%Y-%m-%d"}
_WINDOWS_TRIED = 50


def load_load(folder: Path, group: str, document: Document, texts: Mapping[str, str]) -> LoadDefinition:
    """The table to load of a folder; `texts` are its SQL files that could be read.

    Raises:
        SpecErrors: with every error.
    """
    errors: list[SpecError] = []
    migrations = _migrations(folder, errors)
    spec = validate(LoadSpec, document)
    if isinstance(spec, list):
        raise SpecErrors([*spec, *errors])
    errors += _problems(document, spec, texts)
    if errors:
        raise SpecErrors(errors)
    return LoadDefinition(
        name=folder.name,
        group=group,
        folder=folder,
        spec=spec,
        select_sql=texts.get("select.sql"),
        migrations=migrations,
        version=load_version(folder),
    )


def load_version(folder: Path) -> str:
    """The version of a definition as it is on disk now: SHA-256 over names, lengths and bytes of its files."""
    own = [folder / name for name in _OWN_FILES]
    return files_version(folder, [*own, *sorted((folder / "ver").glob("*.sql"))])


def _migrations(folder: Path, errors: list[SpecError]) -> tuple[tuple[str, str], ...]:
    """Name and text of each file of ver/, in order of their numbers; what is wrong goes to `errors`."""
    found: dict[int, tuple[str, str]] = {}
    for file in sorted((folder / "ver").glob("*.sql")):
        if not _MIGRATION.fullmatch(file.name):
            hint = "name it `001_what_it_does.sql`"
            errors.append(SpecError("its name does not begin with a number of three digits", file=file, hint=hint))
            continue
        number = int(file.name.partition("_")[0])
        if number in found:
            errors.append(SpecError(f"has the number of {found[number][0]}", file=file))
            continue
        try:
            found[number] = (file.name, read_text(file))
        except SpecError as error:
            errors.append(error)
    # The order in which they run is that of their names, which that of their numbers must be.
    names = [found[number][0] for number in sorted(found)]
    if names != sorted(names):
        errors.append(SpecError("numbers of different lengths", file=folder / "ver", hint="write 001, 002 … 010"))
    return tuple(found[number] for number in sorted(found))


def _problems(document: Document, spec: LoadSpec, texts: Mapping[str, str]) -> Iterator[SpecError]:
    """Every error of a table whose fields are valid each by itself."""
    folder, source = document.file.parent, spec.source
    if is_there(folder / "delete.sql"):
        yield SpecError("loading deletes nothing at the source", file=folder / "delete.sql", hint="remove the file")
    has_select = is_there(folder / "select.sql")
    if isinstance(source, DatabaseSource):
        if has_select and source.table:
            yield document.error("`table` and a select.sql beside it both say what is read", ("source", "table"))
        if not has_select and not source.table:
            hint = "give `table: schema.name`, or put a select.sql beside defs.yaml"
            yield document.error("neither `table` nor select.sql says what is read", ("source",), hint)
    elif has_select:
        yield SpecError(f"a source of type {source.type} has no select.sql", file=folder / "select.sql")
    if spec.partitions is not None:
        yield from _window_problems(document, spec, spec.partitions, texts)
    if spec.route is not None and not re.fullmatch(r"\S+", spec.route):
        yield document.error("the name of a route has no white space and is not empty", ("route",))
    yield from label_problems(document, spec.owners, spec.tags)


def _window_problems(
    document: Document, spec: LoadSpec, partitions: PartitionsSpec, texts: Mapping[str, str]
) -> Iterator[SpecError]:
    """What is wrong with windows: what they are, and what would give rows of one with each, or take those of others."""
    found = windows.problems(partitions)
    for name, message in found:
        yield document.error(message, ("partitions", name))
    period = (spec.partition_by or "").partition("(")[0]
    if not found and period in _PERIODS:
        first = windows.first_windows(partitions, _WINDOWS_TRIED)
        cut = [each for each in first if each.start and not _begins(each.start, _PERIODS[period])]
        if cut:
            message = f"window {cut[0].partition} begins within a {period}, whose rows it would take the place of"
            yield document.error(message, ("partition_by",), f"let each window begin with a {period}")
    source = spec.source
    if isinstance(source, DatabaseSource):
        used = "%(window_" in texts.get("select.sql", "")
        hint = "write a select.sql with `WHERE at >= %(window_start)s AND at < %(window_end)s`"
    else:
        # What a variable holds is not known here.
        used = not isinstance(source, RestSource) or not isinstance(source.url, str)
        used = used or "{window_" in source.model_dump_json(include={"url", "params", "body"})
        hint = "use `{window_start}` and `{window_end}` in url, params or body"
    if not used:
        yield document.error("each window would give the same rows, since nothing says which", ("partitions",), hint)


def _begins(moment: datetime, form: str) -> bool:
    """Whether another period begins at a time, in its zone."""
    before = (moment.astimezone(UTC) - timedelta(microseconds=1)).astimezone(moment.tzinfo)
    return before.strftime(form) != moment.strftime(form)
