"""Writing records in a format and reading them back, as an export and a restore do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from export_pipelines.formats.fields import Field, fields_of
from export_pipelines.formats.readers import read_records
from export_pipelines.formats.writers import open_writer
from export_pipelines.manifest import Column
from export_pipelines.specs.format import FormatSpec


def fields(engine: Any = "postgresql", **types: str) -> tuple[Field, ...]:
    """Fields by name and type."""
    return fields_of([Column(name=name, type=kind) for name, kind in types.items()], engine)


def written(
    spec: FormatSpec, of: Sequence[Field], *batches: list[bytes], dictionary: Mapping[str, Any] | None = None
) -> tuple[bytes, bool]:
    """The bytes of a file, and whether the writer says that it gives back its records."""
    writer = open_writer(spec, of, dictionary=dictionary)
    try:
        data = writer.begin() + b"".join(map(writer.encode, batches)) + b"".join(writer.finish())
        return data, writer.exact
    finally:
        writer.close()


def read_back(spec: FormatSpec, of: Sequence[Field], data: bytes, size: int = 1 << 16) -> list[bytes]:
    """The records of a file whose bytes come in pieces."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return [record for found in read_records(spec, of, pieces) for record in found]


def layout(name: str, **more: Any) -> FormatSpec:
    """A format by its name and options."""
    return FormatSpec.model_validate({"type": name, **more})
