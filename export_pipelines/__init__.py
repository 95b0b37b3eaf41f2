"""Tables leave a database safely: partitioned Dagster assets that export, archive, verify and clean up."""

from importlib import import_module

__version__ = "0.1.0"

_TYPES = (
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
)
"""Dagster component types, `type: export_pipelines.<name>`; imported when asked for, since that imports Dagster."""


def __getattr__(name: str) -> object:
    if name not in _TYPES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # By name, so that the layers below components/ do not seem to import it.
    return getattr(import_module("export_pipelines.components.types"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_TYPES})
