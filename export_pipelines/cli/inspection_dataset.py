"""What `check` looks at for data sets: their own query by itself, then all that is said of it against the source."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from export_pipelines.cli.places import documents_of, resource_error
from export_pipelines.errors import ExportPipelinesError, RequestError, SpecError
from export_pipelines.formats.fields import Field, fields_of
from export_pipelines.formats.problems import problems, unknown_conversions
from export_pipelines.specs.dataset import DataSetDefinition, Mail
from export_pipelines.specs.dataset_loader import DATASET_TYPE
from export_pipelines.specs.documents import DocumentPath, suggest
from export_pipelines.specs.format import CsvSpec
from export_pipelines.specs.service import ServiceSpec, variables
from export_pipelines.steps.request import format_spec
from export_pipelines.steps.request_columns import misfit
from export_pipelines.steps.request_reading import Limits, Reading, RequestSource, open_reading
from export_pipelines.steps.request_widening import widen_misfit

if TYPE_CHECKING:
    from pathlib import Path

    from export_pipelines.cli.project import Opened

_SECONDS = "30s"


@dataclass
class DataSetFindings:
    """What is to be said of a data set."""

    dataset: DataSetDefinition
    errors: list[SpecError] = field(default_factory=list)
    columns: int | None = None
    """How many may be asked for; None when the source was not asked."""
    rows: int | None = None
    """How many the source expects without any filter."""


def named_datasets(project: Opened, names: Sequence[str]) -> tuple[list[DataSetDefinition], list[str]]:
    """The data sets of some ids, names or patterns, all without names; and those names that may be of tables, too."""
    from export_pipelines.cli.project import fits

    known = list(project.project.datasets.values())
    if not names:
        return known, []
    found = [each for each in known if any(fits(name, each.id) or name == each.name for name in names)]
    tables = [each.table for each in project.project.tables.values()]
    others = [*((table.id, table.name) for table in tables), *((each.id, each.name) for each in project.project.broken)]

    def only_a_dataset(name: str) -> bool:
        mine = any(fits(name, each.id) or name == each.name for each in known)
        return mine and not any(fits(name, id_) or name == short for id_, short in others)

    return found, [name for name in names if not only_a_dataset(name)]


def check_query(dataset: DataSetDefinition) -> list[SpecError]:
    """Parse a data set's own query."""
    if dataset.engine == "opensearch":
        return []
    try:
        if dataset.engine == "mysql":
            from export_pipelines.steps.request_mysql import parse as parse_mysql

            parse_mysql(dataset)
        else:
            from export_pipelines.steps.request_postgres import parse

            parse(dataset)
    except SpecError as error:
        if dataset.select_sql is not None:
            return [error]
        path = tuple(error.field.split(".")) if error.field else ("table",)
        return [dataset_error(dataset, error.message, path, error.hint)]
    return []


def check_dataset(source: RequestSource, dataset: DataSetDefinition) -> DataSetFindings:
    """Compare a data set, whose query parses, with its source. No rows are read."""
    found = DataSetFindings(dataset)
    try:
        with open_reading(dataset, source, None, Limits(_SECONDS)) as reading:
            _inspect(found, reading)
    except SpecError as error:
        found.errors.append(_placed(dataset, error))
    except ExportPipelinesError as error:
        path = next(((name,) for name in ("table", "index") if getattr(dataset.spec, name)), ())
        found.errors.append(dataset_error(dataset, error.message, path, error.hint))
    return found


def _inspect(found: DataSetFindings, reading: Reading) -> None:
    dataset = found.dataset
    every = fields_of(reading.available, dataset.engine)
    found.errors += _columns_named(dataset, every)
    found.errors += [_placed(dataset, error) for error in reading.misfits()]
    # Raises where a column of `columns` is not there.
    fields = fields_of(reading.columns, dataset.engine)
    found.columns = len(fields)
    found.errors += _formats(dataset, fields)
    if dataset.spec.widen is not None and (problem := widen_misfit(dataset.spec.widen, fields)):
        found.errors.append(dataset_error(dataset, problem, ("widen", "column")))
    found.rows = reading.estimate()


def _columns_named(dataset: DataSetDefinition, fields: Sequence[Field]) -> Iterator[SpecError]:
    """Filters that do not fit, and names of columns that there are not."""
    by_name = {each.name: each for each in fields}
    for name, spec in dataset.spec.filters.items():
        if problem := misfit(name, spec, by_name):
            yield dataset_error(dataset, problem[0], ("filters", name), problem[1])
    lists: dict[str, Iterable[str]] = {
        "order_by": dataset.spec.order_by,
        "column_descriptions": dataset.spec.column_descriptions if dataset.spec.widen is None else (),
    }
    for option, names in lists.items():
        for name in names:
            if name not in by_name:
                message = f"there is no column {name!r}"
                yield dataset_error(dataset, message, (option, name), suggest(name, list(by_name)))


def _formats(dataset: DataSetDefinition, fields: Sequence[Field]) -> Iterator[SpecError]:
    """What formats cannot hold. Columns that come of keys are texts, which all can."""
    for number, kind in enumerate(dataset.spec.formats):
        for message in problems(format_spec(dataset, kind, CsvSpec()), fields):
            yield dataset_error(dataset, message, ("formats", number))
    spec = format_spec(dataset, dataset.spec.formats[0], CsvSpec())
    for message in unknown_conversions(spec, fields):
        yield dataset_error(dataset, message, ("conversions",))


def dataset_error(dataset: DataSetDefinition, message: str, path: DocumentPath = (), hint: str = "") -> SpecError:
    """An error at a field of a data set's defs.yaml; of a table, below its `on_demand`."""
    file = dataset.folder / "defs.yaml"
    for document in documents_of(file):
        below: DocumentPath = () if document.type == DATASET_TYPE else ("on_demand",)
        own = path if path[:1] in (("table",), ("mask_columns",)) else (*below, *path)
        return document.error(message, own, hint)
    return SpecError(message, file=file, hint=hint)


def _placed(dataset: DataSetDefinition, error: SpecError) -> SpecError:
    if error.file != dataset.folder / "defs.yaml" or error.line:
        return error
    return dataset_error(dataset, error.message, tuple(error.field.split(".")) if error.field else (), error.hint)


def mail_errors(datasets: Iterable[DataSetDefinition], service: ServiceSpec) -> Iterator[SpecError]:
    """Data sets that want mails of a service that sends none: nobody could ask."""
    for dataset in datasets:
        if dataset.spec.mail is Mail.REQUIRED and service.smtp is None:
            message = "who asks must give an e-mail address, and the service has no mail server: nobody can ask"
            hint = "name one by `smtp` in resources/service/defs.yaml, or say `mail: optional`"
            yield dataset_error(dataset, message, ("mail",), hint)


def service_warnings(root: Path, service: ServiceSpec) -> list[SpecError]:
    """Variables that the service's document names and that are not set."""
    found = [each for _, each in variables(service)]
    names = sorted({each.env for each in found if each.default is None and each.env not in os.environ})
    hint = "set it in the environment or in .env"
    return [
        resource_error(root, "service", RequestError(f"the variable {name} is not set", hint=hint)) for name in names
    ]
