"""A project as Dagster's definitions: its three folders read, and what is broken in them shown instead of failing.

Pure functions of files: nothing is connected to. The component types (types.py) call the same factories one by one.
"""

from __future__ import annotations

import fnmatch
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg

from export_pipelines import naming
from export_pipelines.components.automation import (
    AutomationSpec,
    ChainSensorSpec,
    DrillScheduleSpec,
    DueCleanupSensorSpec,
    ExpireScheduleSpec,
    ExportScheduleSpec,
    FailureNoticeSpec,
    UpstreamSensorSpec,
    VerifyScheduleSpec,
)
from export_pipelines.components.drill import CHECK as DRILL
from export_pipelines.components.drill import drill_definitions
from export_pipelines.components.dump_job import dump_job
from export_pipelines.components.notices import failure_notice
from export_pipelines.components.resources import (
    AgeIdentityResource,
    AgeIdentitySpec,
    CatalogSpec,
    FilesystemStoreSpec,
    MysqlConnectionResource,
    MysqlConnectionSpec,
    PostgresConnectionResource,
    PostgresConnectionSpec,
    ResourceSpec,
    S3StoreSpec,
    SigningKeyResource,
    SigningKeySpec,
    StoreSpec,
)
from export_pipelines.components.restore_job import Places, restore_job
from export_pipelines.components.schedules import expire_schedules, export_schedules
from export_pipelines.components.sensors import chain_sensor, due_cleanup_sensor, upstream_sensor
from export_pipelines.components.tables import TableAssets, asset_key, required_resources, table_assets
from export_pipelines.components.verification import CHECK as VERIFIED
from export_pipelines.components.verification import verify_definitions
from export_pipelines.errors import SpecError, SpecErrors
from export_pipelines.specs.documents import Document, load_documents, suggest, validate
from export_pipelines.specs.encryption import EncryptionSpec
from export_pipelines.specs.loader import BrokenFolder, load_tables
from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.table import TableDefinition

log = logging.getLogger("export_pipelines")

PREFIX = "export_pipelines."
BROKEN_GROUP = "broken"

RESOURCES: dict[str, type[ResourceSpec]] = {
    "PostgresConnection": PostgresConnectionSpec,
    "MysqlConnection": MysqlConnectionSpec,
    "CatalogDatabase": CatalogSpec,
    "FilesystemStore": FilesystemStoreSpec,
    "S3Store": S3StoreSpec,
    "Store": StoreSpec,
    "AgeIdentity": AgeIdentitySpec,
    "SigningKey": SigningKeySpec,
}
"""Types of the documents in resources/."""

AUTOMATION: dict[str, type[AutomationSpec]] = {
    "ExportSchedule": ExportScheduleSpec,
    "ExpireSchedule": ExpireScheduleSpec,
    "DrillSchedule": DrillScheduleSpec,
    "VerifySchedule": VerifyScheduleSpec,
    "ChainSensor": ChainSensorSpec,
    "UpstreamSensor": UpstreamSensorSpec,
    "DueCleanupSensor": DueCleanupSensorSpec,
    "FailureNotice": FailureNoticeSpec,
}
"""Types of the documents in schedules/."""

SpecT = TypeVar("SpecT", bound=SpecModel)


@dataclass
class Project:
    """What was found. `broken` is everything that is left out, with its errors."""

    root: Path
    tables: dict[str, TableAssets] = field(default_factory=dict)
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
        own = dg.Definitions(
            assets=[
                *(asset for each in self.tables.values() for asset in each.assets),
                *(broken_asset(each, self.root) for each in self.broken),
            ],
            asset_checks=[check for _, each in self.automations for check in each.asset_checks or ()],
            jobs=[*self.jobs(), *(job for _, each in self.automations for job in each.jobs or ())],
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

    def tables_named(self, patterns: Iterable[str]) -> Iterator[TableAssets]:
        """The tables whose id matches any of some patterns."""
        for name, each in self.tables.items():
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
    def add(document: Document) -> None:
        spec = _spec(document, RESOURCES)
        if spec.resource_key in project.resources:
            raise document.error(f"there are two of the name {spec.resource_key!r}", ("resource_key",))
        project.resources[spec.resource_key] = spec.resource()
        if isinstance(spec, FilesystemStoreSpec | S3StoreSpec) and spec.encryption:
            project.encryption[spec.resource_key] = spec.encryption

    _each_document(project, "resources", add)
    if not any("SigningKey" in (each.folder / "defs.yaml").read_text(errors="replace") for each in project.broken):
        # Where the key's own document is broken, tables are too, rather than unsigned.
        project.resources.setdefault("signing", SigningKeyResource())


def _load_schedules(project: Project) -> None:
    def add(document: Document) -> None:
        spec = _spec(document, AUTOMATION)
        if spec.name in {name for name, _ in project.automations}:
            raise document.error(f"there are two of the name {spec.name!r}", ("name",))
        tables = _tables_of(project, spec, document)
        if isinstance(spec, DrillScheduleSpec):
            _check_drill(project, spec, tables, document)
        if isinstance(spec, VerifyScheduleSpec):
            _refuse_second_verify(project, tables, document)
        try:
            project.automations.append((spec.name, automation(spec, tables, project.resources)))
        except Exception as error:  # Dagster's own rules, and rhythms that cannot be
            raise document.error(str(error)) from error

    _each_document(project, "schedules", add)


def automation(spec: AutomationSpec, tables: Sequence[TableAssets], resources: Mapping[str, Any]) -> dg.Definitions:
    """The schedules or the sensor of a document."""
    match spec:
        case VerifyScheduleSpec():
            return verify_definitions(spec, tables, resources)
        case ExportScheduleSpec():
            return dg.Definitions(schedules=export_schedules(spec, tables))
        case DrillScheduleSpec():
            return drill_definitions(spec, tables)
        case ExpireScheduleSpec():
            return dg.Definitions(schedules=expire_schedules(spec, tables))
        case ChainSensorSpec():
            return dg.Definitions(sensors=[chain_sensor(spec, tables)])
        case UpstreamSensorSpec():
            return dg.Definitions(sensors=[upstream_sensor(spec, tables)])
        case DueCleanupSensorSpec():
            return dg.Definitions(sensors=[due_cleanup_sensor(spec, tables)])
        case FailureNoticeSpec():
            return dg.Definitions(sensors=[failure_notice(spec, tables)])
    raise TypeError(f"nothing to make of {type(spec).__name__}")


def _tables_of(project: Project, spec: AutomationSpec, document: Document) -> list[TableAssets]:
    """The tables that a document names. A broken table breaks what names it by its id; patterns pass over it."""
    for number, pattern in enumerate(spec.tables):
        if pattern == "*" or any(project.tables_named([pattern])):
            continue
        broken = any(fnmatch.fnmatchcase(each.id, pattern) for each in project.broken)
        why = "is broken itself" if broken else "matches no table"
        hint = "mend the table first" if broken else suggest(pattern, list(project.tables))
        raise document.error(f"{pattern!r} {why}", ("tables", number), hint)
    return list(project.tables_named(spec.tables))


def _check_drill(project: Project, spec: DrillScheduleSpec, tables: Sequence[TableAssets], document: Document) -> None:
    """Raises SpecError: its connection is missing, or a table has a drill already, since a check has one definition."""
    if spec.connection is not None and not isinstance(
        project.resources.get(spec.connection), PostgresConnectionResource
    ):
        raise document.error(f"there is no connection {spec.connection!r} in resources/", ("connection",))
    keys = {key for _, each in project.automations for check in each.asset_checks or () for key in check.check_keys}
    for each in tables:
        if dg.AssetCheckKey(asset_key(each.table, "archive"), DRILL) in keys:
            raise document.error(f"{each.table.id} is in another DrillSchedule already", ("tables",))


def _refuse_second_verify(project: Project, tables: Sequence[TableAssets], document: Document) -> None:
    """Raises SpecError: a table is verified by another document, and a check has one definition."""
    keys = {key for _, each in project.automations for check in each.asset_checks or () for key in check.check_keys}
    for each in tables:
        if dg.AssetCheckKey(asset_key(each.table, "archive"), VERIFIED) in keys:
            raise document.error(f"{each.table.id} is in another VerifySchedule already", ("tables",))


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


def _spec(document: Document, models: dict[str, type[SpecT]]) -> SpecT:
    """The document as the model of its type. Raises SpecErrors."""
    model = models.get(document.type.removeprefix(PREFIX))
    if model is None:
        known = [PREFIX + name for name in models]
        hint = suggest(document.type, known) or f"known are {', '.join(known)}"
        raise SpecError(
            f"unknown type {document.type!r}", file=document.file, line=document.line, field="type", hint=hint
        )
    result = validate(model, document)
    if isinstance(result, list):
        raise SpecErrors(result)
    return result


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


def errors_of(broken: Iterable[BrokenFolder]) -> list[SpecError]:
    """Every error of every broken folder."""
    return [error for each in broken for error in each.errors]
