"""The component types that `dg` and editors see: thin shells over the factories that definitions.py calls.

They validate by the same models, so that `dg list components`, `dg scaffold defs`, the JSON schema for editors and a
component tree of your own (`dg.load_from_defs_folder`) agree with `export-pipelines check`.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import ClassVar, Self

import dagster as dg
from dagster.components.scaffold.scaffold import ScaffoldRequest
from pydantic import BaseModel

from export_pipelines import settings
from export_pipelines.components.automation import (
    AutomationSpec,
    ChainSensorSpec,
    DrillScheduleSpec,
    DueCleanupSensorSpec,
    ExpireScheduleSpec,
    ExportScheduleSpec,
    FailureNoticeSpec,
    LoadSensorSpec,
    TidyScheduleSpec,
    UpstreamSensorSpec,
    VerifyScheduleSpec,
)
from export_pipelines.components.load_assets import LoadAssets
from export_pipelines.components.loading_automations import automation
from export_pipelines.components.opensearch import OpenSearchSpec
from export_pipelines.components.project import Project, load_project
from export_pipelines.components.resources import (
    AgeIdentitySpec,
    CatalogSpec,
    FilesystemStoreSpec,
    MysqlConnectionSpec,
    PostgresConnectionSpec,
    ResourceSpec,
    S3StoreSpec,
    SigningKeySpec,
    StoreSpec,
)
from export_pipelines.components.transforms import TransformAssets
from export_pipelines.errors import RequestError, SpecErrors
from export_pipelines.specs.dataset import DataSetSpec
from export_pipelines.specs.load import LoadSpec
from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.service import ServiceSpec
from export_pipelines.specs.table import TableSpec
from export_pipelines.specs.transform import TransformSpec

__all__ = [
    "AgeIdentity",
    "CatalogDatabase",
    "ChainSensor",
    "DataSet",
    "DrillSchedule",
    "DueCleanupSensor",
    "ExpireSchedule",
    "ExportSchedule",
    "ExportTable",
    "FailureNotice",
    "FilesystemStore",
    "LoadSensor",
    "LoadTable",
    "MysqlConnection",
    "OpenSearch",
    "PostgresConnection",
    "S3Store",
    "Service",
    "SigningKey",
    "Store",
    "TidySchedule",
    "Transform",
    "UpstreamSensor",
    "VerifySchedule",
]


_SQL = {"ExportTable": ("select.sql", "delete.sql"), "DataSet": ("select.sql",), "Transform": ("transform.sql",)}
"""Files beside the defs.yaml of a type."""


class TemplateScaffolder(dg.Scaffolder):
    """Writes the defs.yaml of a type, with comments that teach, and the SQL files beside it."""

    def scaffold(self, request: ScaffoldRequest) -> None:
        """Called by `dg scaffold defs export_pipelines.<type> <folder>`. Files that exist are left alone."""
        name = request.type_name.rpartition(".")[2]
        request.target_path.mkdir(parents=True, exist_ok=True)
        _write(request.target_path / "defs.yaml", f"{name}.yaml")
        for file in _SQL.get(name, ()):
            _write(request.target_path / file, name_of(file, name))


def name_of(file: str, kind: str) -> str:
    """The template of a SQL file of a type."""
    return "DataSet.sql" if kind == "DataSet" else file


def template(name: str) -> str:
    """Text of a template: `<type>.yaml`, `select.sql`, `delete.sql`, `transform.sql` or `DataSet.sql`."""
    return (files("export_pipelines.components") / "templates" / name).read_text(encoding="utf-8")


def _write(file: Path, name: str) -> None:
    if not file.exists():
        file.write_text(template(name), encoding="utf-8")


class Shell(dg.Component):
    """Base of all types: attributes are a model of ours."""

    model: ClassVar[type[SpecModel]]

    def __init__(self, spec: SpecModel) -> None:
        self.spec = spec

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        return cls.model

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        return dg.ComponentTypeSpec(description=cls.model.__doc__, tags=["export_pipelines"])

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        if not isinstance(attributes, SpecModel):
            raise TypeError(f"{cls.__name__} needs attributes")
        return cls(attributes)


class FolderShell(Shell):
    """Base of the types in assets/: the project knows what it made of their folder."""

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        folder = (context.path if context.path.is_dir() else context.path.parent).resolve()
        project = _project()
        for broken in project.broken:
            if broken.folder.resolve() == folder:
                raise SpecErrors(broken.errors)
        for path, definitions in self.found(project):
            if path.resolve() == folder:
                return dg.Definitions.merge(definitions, dg.Definitions(resources=project.resources))
        raise RequestError(f"{folder} is not below assets/ of the project {project.root}")

    def found(self, project: Project) -> Iterator[tuple[Path, dg.Definitions]]:
        """The folders of this type in a project, with what they define."""
        raise NotImplementedError


@dg.scaffold_with(TemplateScaffolder)
class ExportTable(FolderShell):
    """A table to export."""

    model = TableSpec

    def found(self, project: Project) -> Iterator[tuple[Path, dg.Definitions]]:
        for each in project.tables.values():
            yield each.table.folder, each.definitions


@dg.scaffold_with(TemplateScaffolder)
class DataSet(FolderShell):
    """Rows that people ask for."""

    model = DataSetSpec

    def found(self, project: Project) -> Iterator[tuple[Path, dg.Definitions]]:
        for each in project.request_assets():
            yield each.dataset.folder, dg.Definitions(assets=[each.asset], jobs=[each.job])


@dg.scaffold_with(TemplateScaffolder)
class LoadTable(FolderShell):
    """A table to load."""

    model = LoadSpec

    def found(self, project: Project) -> Iterator[tuple[Path, dg.Definitions]]:
        for each in project.loads.values():
            yield each.load.folder, dg.Definitions(assets=each.assets, jobs=[each.job])


@dg.scaffold_with(TemplateScaffolder)
class Transform(FolderShell):
    """SQL whose result is an asset."""

    model = TransformSpec

    def found(self, project: Project) -> Iterator[tuple[Path, dg.Definitions]]:
        for each in project.transforms.values():
            yield each.transform.folder, dg.Definitions(assets=[each.steps], jobs=[each.job])


@dg.scaffold_with(TemplateScaffolder)
class Service(Shell):
    """How exports on demand are served: settings, nothing that Dagster knows."""

    model = ServiceSpec

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return dg.Definitions()


class ResourceShell(Shell):
    """Base of the types in resources/."""

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        if not isinstance(self.spec, ResourceSpec):
            raise TypeError(type(self.spec).__name__)
        return dg.Definitions(resources={self.spec.resource_key: self.spec.resource()})


@dg.scaffold_with(TemplateScaffolder)
class PostgresConnection(ResourceShell):
    """A PostgreSQL database that tables are exported from."""

    model = PostgresConnectionSpec


@dg.scaffold_with(TemplateScaffolder)
class MysqlConnection(ResourceShell):
    """A MySQL or MariaDB database that tables are exported from."""

    model = MysqlConnectionSpec


@dg.scaffold_with(TemplateScaffolder)
class OpenSearch(ResourceShell):
    """An OpenSearch whose indexes are data sets."""

    model = OpenSearchSpec


@dg.scaffold_with(TemplateScaffolder)
class CatalogDatabase(ResourceShell):
    """The database of our own metadata."""

    model = CatalogSpec


@dg.scaffold_with(TemplateScaffolder)
class AgeIdentity(ResourceShell):
    """Private identities that open encrypted files."""

    model = AgeIdentitySpec


@dg.scaffold_with(TemplateScaffolder)
class FilesystemStore(ResourceShell):
    """A folder for files."""

    model = FilesystemStoreSpec


@dg.scaffold_with(TemplateScaffolder)
class S3Store(ResourceShell):
    """A bucket of S3, or a prefix in one."""

    model = S3StoreSpec


@dg.scaffold_with(TemplateScaffolder)
class Store(ResourceShell):
    """A store whose kind its URL decides."""

    model = StoreSpec


@dg.scaffold_with(TemplateScaffolder)
class SigningKey(ResourceShell):
    """The key pair that manifests are signed with."""

    model = SigningKeySpec


class AutomationShell(Shell):
    """Base of the types in schedules/."""

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        if not isinstance(self.spec, AutomationSpec):
            raise TypeError(type(self.spec).__name__)
        project = _project()
        patterns = self.spec.tables
        loads: list[LoadAssets | TransformAssets] = [*project.loads_named(patterns)]
        loads += project.transforms_named(patterns)
        return automation(self.spec, list(project.tables_named(patterns)), project.resources, loads)


@dg.scaffold_with(TemplateScaffolder)
class ExportSchedule(AutomationShell):
    """Runs by the clock: each partition after it has closed."""

    model = ExportScheduleSpec


@dg.scaffold_with(TemplateScaffolder)
class DrillSchedule(AutomationShell):
    """Restore drills by the clock."""

    model = DrillScheduleSpec


@dg.scaffold_with(TemplateScaffolder)
class ExpireSchedule(AutomationShell):
    """Gives up what retention does not want, by the clock."""

    model = ExpireScheduleSpec


@dg.scaffold_with(TemplateScaffolder)
class TidySchedule(AutomationShell):
    """Old logs and runs of Dagster go by the clock; nothing that was made last is forgotten."""

    model = TidyScheduleSpec


@dg.scaffold_with(TemplateScaffolder)
class VerifySchedule(AutomationShell):
    """Verifies archives by the clock, within a budget."""

    model = VerifyScheduleSpec


@dg.scaffold_with(TemplateScaffolder)
class ChainSensor(AutomationShell):
    """After export, archive; after archive, cleanup."""

    model = ChainSensorSpec


@dg.scaffold_with(TemplateScaffolder)
class UpstreamSensor(AutomationShell):
    """After an upstream job or asset succeeds, export the partition it made."""

    model = UpstreamSensorSpec


@dg.scaffold_with(TemplateScaffolder)
class DueCleanupSensor(AutomationShell):
    """Cleans up the partitions whose keep period is over."""

    model = DueCleanupSensorSpec


@dg.scaffold_with(TemplateScaffolder)
class LoadSensor(AutomationShell):
    """Lands and loads by itself."""

    model = LoadSensorSpec


@dg.scaffold_with(TemplateScaffolder)
class FailureNotice(AutomationShell):
    """Tells people of failures, by e-mail and webhook."""

    model = FailureNoticeSpec


def _project() -> Project:
    found = settings.load_settings()
    return load_project(found.root, found.dsl_path, automations=False)
