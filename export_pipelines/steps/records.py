"""The records of an export: from the bytes of its file, whatever its format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from export_pipelines.formats.csv import records
from export_pipelines.formats.fields import Engine, fields_of
from export_pipelines.formats.readers import read_records
from export_pipelines.formats.writers import FormatWriter, open_writer
from export_pipelines.manifest import Column, ExportRecord
from export_pipelines.specs.format import FormatSpec
from export_pipelines.specs.table import TableDefinition


def records_in(export: ExportRecord, raw: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The records of a file's raw bytes in the dialect `export.csv`, in lists, without a header.

    Raises:
        IntegrityError: it is no file of that format.
    """
    if export.layout is not None:
        yield from read_records(export.layout, fields_of(export.columns, export.source.engine), raw)
        return
    header = export.csv.header
    for found in records(raw, export.csv):
        found, header = (found[1:], False) if header and found else (found, header)
        yield found


def layout_of(table: TableDefinition) -> FormatSpec | None:
    """The format that records are turned into; None where the records are the file."""
    return None if table.spec.format.native else table.spec.format


def writer_of(table: TableDefinition, columns: Sequence[Column], engine: Engine) -> FormatWriter | None:
    """What turns the records of a table into a file; None where they are the file.

    Raises:
        FormatError: the format cannot hold the columns.
    """
    layout = layout_of(table)
    if layout is None:
        return None
    return open_writer(layout, fields_of(columns, engine), dictionary=dictionary_of(table))


def dictionary_of(table: TableDefinition) -> dict[str, object]:
    """The data dictionary: what a table's definition says of it and its columns."""
    asked = table.spec.on_demand
    found = {
        "title": (asked.title if asked else "") or table.id,
        "description": table.spec.description,
        "columns": dict(asked.column_descriptions) if asked else {},
    }
    return {name: value for name, value in found.items() if value}


def header_of(columns: Sequence[Column]) -> bytes:
    """The names of columns as a plain record."""
    from export_pipelines.formats.writers import PlainWriter

    return PlainWriter(True, fields_of(columns, "postgresql")).begin()
