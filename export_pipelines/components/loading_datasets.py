"""Data sets and the settings of the service, as far as they depend on what is in resources/."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from export_pipelines.components.opensearch import OpenSearchResource
from export_pipelines.components.resources import MysqlConnectionResource, PostgresConnectionResource
from export_pipelines.errors import SpecError
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.documents import suggest
from export_pipelines.specs.encryption import EncryptionSpec
from export_pipelines.specs.service import ServiceSpec

_ENGINES: tuple[tuple[type[Any], str], ...] = (
    (PostgresConnectionResource, "postgresql"),
    (MysqlConnectionResource, "mysql"),
    (OpenSearchResource, "opensearch"),
)


def with_engine(dataset: DataSetDefinition, resources: Mapping[str, Any]) -> DataSetDefinition:
    """The data set with what its connection leads to.

    Raises:
        SpecError: there is no such connection, or it is of another kind than the data set's origin.
    """
    spec = dataset.spec
    resource = resources.get(spec.connection)
    engine = next((name for kind, name in _ENGINES if isinstance(resource, kind)), None)
    file = dataset.folder / "defs.yaml"
    if engine is None:
        known = sorted(key for key, each in resources.items() if isinstance(each, tuple(kind for kind, _ in _ENGINES)))
        message = f"there is no connection {spec.connection!r} in resources/ (or it is broken)"
        hint = suggest(spec.connection, known) or f"known are {', '.join(known) or 'none'}"
        raise SpecError(message, file=file, field="connection", hint=hint)
    if (engine == "opensearch") != (spec.index is not None):
        what = "an OpenSearch, whose data sets have an `index`" if engine == "opensearch" else "a database without any"
        raise SpecError(f"connection {spec.connection!r} leads to {what}", file=file, field="connection")
    return dataset.model_copy(update={"engine": engine})


def with_encryption(
    dataset: DataSetDefinition, service: ServiceSpec, stores: Mapping[str, EncryptionSpec]
) -> DataSetDefinition:
    """The data set with the encryption that is in effect: its own, else what the store of requests says."""
    found = dataset.spec.encryption or stores.get(service.store)
    return dataset.model_copy(update={"spec": dataset.spec.model_copy(update={"encryption": found})})


def missing_keys(service: ServiceSpec, resources: Iterable[str]) -> list[str]:
    """Keys that the service needs and resources/ has not got."""
    return sorted({service.store, "catalog"} - set(resources))
