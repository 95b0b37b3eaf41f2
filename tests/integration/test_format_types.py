"""Every type of PostgreSQL in every format: it comes back the same, or the export fails and says what to declare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export_pipelines.errors import FormatError
from export_pipelines.formats.fields import fields_of
from export_pipelines.formats.readers import read_records
from export_pipelines.formats.writers import open_writer
from export_pipelines.manifest import Column
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.format import FormatSpec
from export_pipelines.specs.table import TableSpec
from export_pipelines.steps.verify import verify_table
from tests.integration.test_types import VALUES, assert_same, make_types
from tests.support.step_tables import StepTable, new_step_table

# Types of which some of VALUES do not fit, so that they are declared as text.
AS_TEXT = {
    "parquet": ["numeric(20,5)", "date", "time", "timestamp", "timestamptz"],
    "jsonl": ["numeric", "numeric(20,5)", "real", "double precision", "json", "jsonb"],
    "excel": ["numeric", "numeric(20,5)", "real", "double precision", "bigint", "date", "timestamp"],
}
AS_TEXT["json"] = AS_TEXT["jsonl"]
TOO_LONG = {"excel": {"text"}}
NO_EXCEL = {"text": [value for value in VALUES["text"] if "repeat" not in value]}


def types_table(folder: Path, url: str, catalog_url: str, name: str, values: dict[str, list[str]]) -> StepTable:
    columns = list(values)
    texts = {f"c{columns.index(kind)}": "text" for kind in AS_TEXT.get(name, [])}
    spec = {
        "table": "public.types",
        "format": {"type": name, "conversions": texts} if name != "csv" else DIALECT,
        "compression": "none",
        "cleanup": "after_archive",
    }
    return new_step_table(folder, url, catalog_url, spec)


DIALECT = {"type": "csv", "csv": {"bom": True, "line_end": "crlf", "delimiter": ";", "null": "NULL"}}


@pytest.mark.parametrize("name", ["csv", "json", "jsonl", "parquet", "excel"])
def test_every_type_is_archived_verified_cleaned_up_and_restored(
    tmp_path: Path, database: str, catalog_url: str, name: str
) -> None:
    values = VALUES | NO_EXCEL if name == "excel" else VALUES
    make_types(database, values)
    table = types_table(tmp_path, database, catalog_url, name, values)
    table.sql("CREATE TABLE kept AS SELECT * FROM types")
    record = table.into_archive()
    assert record.format == name
    report = verify_table(table.ctx.archive, table.id)
    assert report.intact and report.rows == record.rows
    assert table.cleanup().complete
    assert table.restore("back").rows == record.rows
    assert_same(database, "kept", "back")


def test_a_value_comes_back_byte_for_byte_or_is_refused_with_a_hint(database: str) -> None:
    make_types(database)
    found = values_of(database)
    for name in ("csv", "json", "jsonl", "parquet", "excel"):
        refused = {
            kind for kind, (column, records) in found.items() if not all(comes_back(name, column, r) for r in records)
        }
        assert refused == set(AS_TEXT.get(name, [])) | TOO_LONG.get(name, set()), name


def values_of(url: str) -> dict[str, tuple[Column, list[bytes]]]:
    """The columns of VALUES, each with its values as records."""
    found: dict[str, tuple[Column, list[bytes]]] = {}
    with PostgresSource(url).session() as session:
        session.begin()
        query = "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'types'::regclass"
        types = dict(session.execute(f"{query} AND attnum > 0"))
        for number, kind in enumerate(VALUES):
            records: list[bytes] = []
            name = f"c{number}"
            session.copy_out(f"SELECT {name} FROM types WHERE {name} IS NOT NULL", "FORMAT csv", records.append)
            found[kind] = Column(name="c", type=types[name]), records
    return found


def comes_back(name: str, column: Column, record: bytes) -> bool:
    """Whether a value survives; False if it was refused with a hint."""
    fields = fields_of([column], "postgresql")
    spec = FormatSpec.model_validate({"type": name, "conversions": {"*": "checked"}} if name != "csv" else DIALECT)
    writer = open_writer(spec, fields)
    try:
        data = writer.begin() + writer.encode([record]) + b"".join(writer.finish())
    except FormatError as error:
        assert error.hint
        return False
    finally:
        writer.close()
    back = [each for found in read_records(spec, fields, [data]) for each in found]
    assert back == [record] or not writer.exact, (column, record, back)
    return True


def test_a_cleanup_with_a_format_that_changes_values_is_refused() -> None:
    spec: dict[str, Any] = {"table": "events", "cleanup": "after_archive"}
    for layout in ({"type": "parquet", "conversions": {"n": "float"}}, {"csv": {"neutralise_formulas": True}}):
        TableSpec.model_validate({"table": "events", "format": layout})
        with pytest.raises(ValueError, match="changes values"):
            TableSpec.model_validate({**spec, "format": layout})


def test_formats_that_are_compressed_within_have_no_other_compression() -> None:
    spec = TableSpec.model_validate({"table": "events", "format": {"type": "parquet"}})
    assert spec.packing == "none"
    with pytest.raises(ValueError, match="leave out compression"):
        TableSpec.model_validate({"table": "events", "format": {"type": "parquet"}, "compression": "zstd"})
