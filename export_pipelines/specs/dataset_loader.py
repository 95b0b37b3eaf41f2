"""Data sets of a project: from folders of their own, and from tables that say `on_demand`. See loader.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from export_pipelines.errors import SpecError, SpecErrors
from export_pipelines.specs.checks import dagster_problems, is_there
from export_pipelines.specs.dataset import DataSetDefinition, DataSetOptions, DataSetSpec
from export_pipelines.specs.documents import Document, validate
from export_pipelines.specs.table import TableDefinition

DATASET_TYPE = "export_pipelines.DataSet"


def load_dataset(
    folder: Path, group: str, document: Document, texts: Mapping[str, str], version: str
) -> DataSetDefinition:
    """The data set of a folder; `texts` are its SQL files that could be read.

    Raises:
        SpecErrors: with every error.
    """
    spec = validate(DataSetSpec, document)
    if isinstance(spec, list):
        raise SpecErrors(spec)
    if errors := list(_problems(document, spec, texts)):
        raise SpecErrors(errors)
    return DataSetDefinition(
        name=folder.name,
        group=group,
        folder=folder,
        spec=spec,
        select_sql=texts.get("select.sql"),
        version=version,
    )


def on_demand(table: TableDefinition, document: Document) -> DataSetDefinition | None:
    """The data set that a table says it is; None if it says nothing. Its rows are all those of the table, whatever its
    partitions.

    Raises:
        SpecErrors: select.sql gives the rows of one partition only, or options do not fit each other.
    """
    options = table.spec.on_demand
    if options is None:
        return None
    if table.select_sql is not None and table.spec.partitions is not None:
        message = "select.sql gives the rows of one partition, so rows of all of them cannot be asked for"
        hint = f"write a folder of `type: {DATASET_TYPE}` with a select.sql of its own"
        raise SpecErrors([document.error(message, ("on_demand",), hint)])
    if errors := list(_option_problems(document, options, ("on_demand",))):
        raise SpecErrors(errors)
    return DataSetDefinition(
        name=table.name,
        group=table.group,
        folder=table.folder,
        spec=DataSetSpec(**_inherited(table, options)),
        select_sql=table.select_sql,
        version=table.version,
    )


def _inherited(table: TableDefinition, options: DataSetOptions) -> dict[str, Any]:
    """What the table's own file says of the data set."""
    spec = table.spec
    derived = spec.table if table.select_sql is None else None
    own = {name: getattr(options, name) for name in DataSetOptions.model_fields}
    if "timezone" not in options.model_fields_set:
        own["timezone"] = spec.session_timezone
    return {
        **own,
        "description": spec.description,
        "connection": spec.connection,
        "table": derived,
        "exclude_columns": spec.exclude_columns if derived else (),
        "mask_columns": spec.mask_columns if derived else {},
        "encryption": spec.encryption,
        "owners": spec.owners,
        "tags": spec.tags,
        "depends_on": spec.depends_on,
    }


def _problems(document: Document, spec: DataSetSpec, texts: Mapping[str, str]) -> Iterator[SpecError]:
    """Every error of a data set whose fields are valid each by itself."""
    folder = document.file.parent
    named = "table" if spec.table else "index" if spec.index else ""
    there = is_there(folder / "select.sql")
    if there and named:
        yield document.error(f"`{named}` and a select.sql beside it both say what is asked for", (named,))
    if not there and not named:
        hint = "give `table: schema.name` or `index: name`, or put a select.sql beside defs.yaml"
        yield document.error("neither `table`, `index` nor select.sql says what may be asked for", hint=hint)
    if is_there(folder / "delete.sql"):
        yield SpecError("a data set deletes nothing", file=folder / "delete.sql", hint="remove the file")
    yield from _option_problems(document, spec, ())
    yield from dagster_problems(document, spec)


def _option_problems(document: Document, spec: DataSetOptions, path: tuple[str, ...]) -> Iterator[SpecError]:
    """What options say against each other, as far as columns are listed."""
    known = set(spec.columns)
    if not known:
        return
    for name in spec.column_descriptions:
        if name not in known and spec.widen is None:
            message = f"describes {name!r}, which is not among `columns`"
            yield document.error(message, (*path, "column_descriptions", name))
    if spec.widen is not None and spec.widen.column not in known:
        message = f"column {spec.widen.column!r} is not among `columns`"
        yield document.error(message, (*path, "widen", "column"))
