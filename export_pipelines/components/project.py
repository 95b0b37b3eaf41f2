"""A project as Dagster's definitions: its three folders read, and what is broken in them shown instead of failing.

Pure functions of files: nothing is connected to. The component types (types.py) call the same factories one by one.
"""

from __future__ import annotations

import fnmatch
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from export_pipelines import naming
from export_pipelines.components.dump_job import dump_job
from export_pipelines.components.load_assets import LoadAssets
from export_pipelines.components.loading_automations import add_automation
from export_pipelines.components.loading_datasets import missing_keys, with_encryption, with_engine
from export_pipelines.components.loading_loads import add_loads
from export_pipelines.components.opensearch import OpenSearchSpec
from export_pipelines.components.request_job import DataSetAssets, data_set_assets
from export_pipelines.components.resources import (
    AgeIdentityResource,
    AgeIdentitySpec,
    CatalogSpec,
    FilesystemStoreSpec,
    MysqlConnectionResource,
    MysqlConnectionSpec,
    PostgresConnectionSpec,
    ResourceSpec,
    S3StoreSpec,
    SigningKeyResource,
    SigningKeySpec,
    StoreSpec,
    value_fields,
)
from export_pipelines.components.restore_job import Places, restore_job
from export_pipelines.components.tables import TableAssets, asset_key, required_resources, table_assets
from export_pipelines.components.transforms import TransformAssets
from export_pipelines.errors import SpecError, SpecErrors
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.documents import PREFIX, Document, document_spec, load_documents, suggest
from export_pipelines.specs.encryption import EncryptionSpec
from export_pipelines.specs.loader import BrokenFolder, load_tables
from export_pipelines.specs.service import ServiceSpec
from export_pipelines.specs.table import TableDefinition
from export_pipelines.specs.variables import fill, unset_errors

log = logging.getLogger("export_pipelines")

BROKEN_GROUP = "broken"

RESOURCES: dict[str, type[ResourceSpec] | type[ServiceSpec]] = {
    "PostgresConnection": PostgresConnectionSpec,
    "MysqlConnection": MysqlConnectionSpec,
    "OpenSearch": OpenSearchSpec,
    "CatalogDatabase": CatalogSpec,
    "FilesystemStore": FilesystemStoreSpec,
    "S3Store": S3StoreSpec,
    "Store": StoreSpec,
    "AgeIdentity": AgeIdentitySpec,
    "SigningKey": SigningKeySpec,
    "Service": ServiceSpec,
}
"""Types of the documents in resources/."""


@dataclass
class Project:
    """What was found. `broken` is everything that is left out, with its errors."""

    root: Path
    tables: dict[str, TableAssets] = field(default_factory=dict)
    datasets: dict[str, DataSetDefinition] = field(default_factory=dict)
    """What people may ask for, by id, tables that say so included."""
    loads: dict[str, LoadAssets] = field(default_factory=dict)
    """Tables to load, by id."""
    transforms: dict[str, TransformAssets] = field(default_factory=dict)
    service: ServiceSpec = field(default_factory=ServiceSpec)
    service_errors: list[SpecError] = field(default_factory=list)
    """What is wrong with the service's document: its settings are then not those that somebody wrote, and nothing is to
    be served."""
    resources: dict[str, Any] = field(default_factory=dict)
    encryption: dict[str, EncryptionSpec] = field(default_factory=dict)
    """What stores say of it, by their keys."""
    automations: list[tuple[str, dg.Definitions]] = field(default_factory=list)
    """Names in schedules/, with what they define."""
    foreign: list[dg.Definitions] = field(default_factory=list)
    broken: list[BrokenFolder] = field(default_factory=list)

    @property
    def identities(self) -> tuple[str, ...]:
        """Keys of the resources with private identities."""
        return tuple(key for key, each in self.resources.items() if isinstance(each, AgeIdentityResource))

    def definitions(self) -> dg.Definitions:
        """All of it as Dagster's definitions; what is broken as assets with their errors."""
        for each in self.broken:
            log.warning("%s is left out:\n%s", each.id, "\n".join(map(str, each.errors)))
        requests = self.request_assets()
        own = dg.Definitions(
            assets=[
                *(asset for each in self.tables.values() for asset in each.assets),
                *(asset for each in self.loads.values() for asset in each.assets),
                *(each.steps for each in self.transforms.values()),
                *(each.asset for each in requests),
                *(asset for _, each in self.automations for asset in each.assets or ()),
                *(broken_asset(each, self.root) for each in self.broken),
            ],
            asset_checks=[check for _, each in self.automations for check in each.asset_checks or ()],
            jobs=[
                *self.jobs(),
                *(each.job for each in self.loads.values()),
                *(each.job for each in self.transforms.values()),
                *(each.job for each in requests),
                *(job for _, each in self.automations for job in each.jobs or ()),
            ],
            resources=self.resources,
            schedules=[schedule for _, each in self.automations for schedule in each.schedules or ()],
            sensors=[sensor for _, each in self.automations for sensor in each.sensors or ()],
            executor=dg.in_process_executor,
        )
        return dg.Definitions.merge(own, *self.foreign) if self.foreign else own

    def jobs(self) -> list[Any]:
        """The jobs of the tables, and that of a restore."""
        defined = {name: each.table for name, each in self.tables.items()}
        restore = restore_job(Places(defined, self.resources, self.identities))
        dumps = [dump_job(each.table, self.identities) for each in self.tables.values()]
        return [restore, *dumps, *(job for each in self.tables.values() for job in each.jobs.values())]

    def request_assets(self) -> list[DataSetAssets]:
        """What the data sets give to Dagster; nothing where resources/ lacks what a request needs."""
        if missing_keys(self.service, self.resources):
            return []
        return [data_set_assets(each, self.service, self._source_of(each)) for each in self.datasets.values()]

    def _source_of(self, dataset: DataSetDefinition) -> list[dg.AssetKey]:
        table = self.tables.get(dataset.id)
        return [asset_key(table.table, "source")] if table else []

    def tables_named(self, patterns: Iterable[str]) -> Iterator[TableAssets]:
        """The tables whose id matches any of some patterns."""
        for name, each in self.tables.items():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                yield each

    def loads_named(self, patterns: Iterable[str]) -> Iterator[LoadAssets]:
        """The tables to load whose id matches any of some patterns."""
        for name, each in self.loads.items():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                yield each

    def transforms_named(self, patterns: Iterable[str]) -> Iterator[TransformAssets]:
        """The transforms whose id matches any of some patterns."""
        for name, each in self.transforms.items():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                yield each


def load_project(root: Path, dsl_path: Path | None = None, *, automations: bool = True) -> Project:
    """Read the project at `root`, its schedules/ too with `automations`. Raises nothing for what is broken in it."""
    project = Project(root)
    _load_resources(project)
    loaded = load_tables(root, dsl_path)
    project.broken += loaded.broken
    for table in loaded.tables.values():
        _load_table(project, table)
    for dataset in loaded.datasets.values():
        _load_dataset(project, dataset)
    add_loads(project, loaded.loads, loaded.transforms)
    if automations:
        _load_schedules(project)
    return project


def broken_asset(broken: BrokenFolder, root: Path) -> dg.AssetSpec:
    """A folder that cannot be used, shown as an asset with every error."""
    ordered = sorted(broken.errors, key=lambda error: (str(error.file), error.line))
    errors = [str(error) for error in ordered]
    first = ordered[0]
    return dg.AssetSpec(
        dg.AssetKey([*naming.asset_key(broken.id, "broken")]),
        group_name=BROKEN_GROUP,
        kinds={"broken"},
        description="**Left out, since it is broken:**\n\n" + "\n\n".join(f"```\n{error}\n```" for error in errors),
        metadata={
            "file": dg.MetadataValue.path(str(first.file)),
            "line": first.line,
            "folder": dg.MetadataValue.path(str(_relative(broken.folder, root))),
        },
    )


def _load_table(project: Project, table: TableDefinition) -> None:
    missing = required_resources(table) - project.resources.keys()
    table = _with_engine(project, _with_encryption(project, table))
    errors = [_unknown_resource(project, table, name) for name in sorted(missing)]
    if not errors:
        try:
            project.tables[table.id] = table_assets(table, project.identities)
            return
        except Exception as error:  # Dagster's own rules, of names, owners, tags …
            errors = [SpecError(f"Dagster refuses it: {error}", file=table.folder / "defs.yaml")]
    project.broken.append(BrokenFolder(table.name, table.group, table.folder, errors))


def _load_dataset(project: Project, dataset: DataSetDefinition) -> None:
    """A table that is broken is no data set either."""
    if any(each.folder == dataset.folder for each in project.broken):
        return
    try:
        dataset = with_engine(dataset, project.resources)
    except SpecError as error:
        project.broken.append(BrokenFolder(dataset.name, dataset.group, dataset.folder, [error]))
        return
    project.datasets[dataset.id] = with_encryption(dataset, project.service, project.encryption)


def _with_encryption(project: Project, table: TableDefinition) -> TableDefinition:
    """The table with the encryption that is in effect: its own, else that of the store of its exports, else that of its
    archive."""
    stores = (project.encryption.get(key) for key in (table.spec.store, table.spec.archive))
    found = table.spec.encryption or next((each for each in stores if each is not None), None)
    return table.model_copy(update={"spec": table.spec.model_copy(update={"encryption": found})})


def _with_engine(project: Project, table: TableDefinition) -> TableDefinition:
    """The table with the kind of database that its connection leads to."""
    is_mysql = isinstance(project.resources.get(table.spec.connection), MysqlConnectionResource)
    return table.model_copy(update={"engine": "mysql" if is_mysql else "postgresql"})


def _unknown_resource(project: Project, table: TableDefinition, name: str) -> SpecError:
    known = sorted(project.resources)
    hint = suggest(name, known) or f"known are {', '.join(known) or 'none'}"
    return SpecError(
        f"there is no {name!r} in resources/ (or it is broken)", file=table.folder / "defs.yaml", hint=hint
    )


def _load_resources(project: Project) -> None:
    served: list[Document] = []

    def add(document: Document) -> None:
        spec = document_spec(_with_variables(document), RESOURCES)
        if isinstance(spec, ServiceSpec):
            served.append(document)
            if len(served) > 1:
                raise document.error("there are two documents of this type", hint="a project has one service")
            project.service = spec
            return
        if spec.resource_key in project.resources:
            raise document.error(f"there are two of the name {spec.resource_key!r}", ("resource_key",))
        project.resources[spec.resource_key] = spec.resource()
        if isinstance(spec, FilesystemStoreSpec | S3StoreSpec) and spec.encryption:
            project.encryption[spec.resource_key] = spec.encryption

    _each_document(project, "resources", add)
    _check_service(project, served)
    if not any("SigningKey" in (each.folder / "defs.yaml").read_text(errors="replace") for each in project.broken):
        # Where the key's own document is broken, tables are too, rather than unsigned.
        project.resources.setdefault("signing", SigningKeyResource())


def _with_variables(document: Document) -> Document:
    """The document with `${VAR}` filled in. Raises SpecErrors: a variable is not set, and the resource not optional."""
    if document.attributes.get("optional") is not True and (errors := list(unset_errors(document))):
        raise SpecErrors(errors)
    model = RESOURCES.get(document.type.removeprefix(PREFIX))
    return fill(document, value_fields(model) if model else set())


def _check_service(project: Project, served: Sequence[Document]) -> None:
    """What the service needs of the other documents; a broken one of its own is noted, too."""
    for each in project.broken:
        if "export_pipelines.Service" in (each.folder / "defs.yaml").read_text(errors="replace"):
            project.service_errors += each.errors
    missing = missing_keys(project.service, project.resources)
    if served and missing:
        path = ("store",) if project.service.store in missing else ()
        error = served[0].error(f"there is no {missing[0]!r} in resources/ (or it is broken)", path)
        folder = served[0].file.parent
        project.service_errors.append(error)
        project.broken.append(BrokenFolder(folder.name, "resources", folder, [error]))


def _load_schedules(project: Project) -> None:
    _each_document(project, "schedules", lambda document: add_automation(project, document))


def _each_document(project: Project, folder: str, add: Callable[[Document], None]) -> None:
    """Hand each document of a folder's files to `add`; errors break the one file they are in, never the others."""
    for file in _files(project.root / folder):
        errors: list[SpecError] = []
        try:
            documents = load_documents(file)
        except SpecErrors as error:
            documents, errors = [], error.errors
        for document in documents:
            try:
                if document.type.startswith(PREFIX):
                    add(document)
                else:
                    project.foreign.append(_foreign(document))
            except SpecErrors as error:
                errors += error.errors
            except SpecError as error:
                errors.append(error)
        if errors:
            name = file.parent.name if file.parent != project.root / folder else "defs"
            group = "/".join((folder, *file.parent.relative_to(project.root / folder).parts[:-1]))
            project.broken.append(BrokenFolder(name, group, file.parent, errors))


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.rglob("defs.yaml"))) if folder.is_dir() else iter(())


def _foreign(document: Document) -> dg.Definitions:
    """The definitions of a component that is not ours, such as `dagster_aws.S3ResourceComponent`."""
    from dagster_shared.seven import load_module_object

    module, _, name = document.type.rpartition(".")
    try:
        with warnings.catch_warnings():
            # Who names a component knows its state.
            warnings.simplefilter("ignore", category=dg.PreviewWarning)
            component: Any = load_module_object(module, name)
            instance = component.from_attributes_dict(attributes=dict(document.attributes))
            definitions: dg.Definitions = instance.build_defs(dg.ComponentTree.for_test().load_context)
    except Exception as error:
        raise document.error(f"{document.type}: {error}") from error
    return definitions


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path
