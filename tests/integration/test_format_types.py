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


@pytest.mark.parametrize("name", ["csv", "json", "jsonl", "parquet", "excel"])
def test_a_value_comes_back_byte_for_byte_or_is_refused_with_a_hint(database: str, name: str) -> None:
    make_types(database)
    refused = set()
    for number, kind in enumerate(VALUES):
        for record in values_of(database, f"c{number}"):
            if not comes_back(name, column_of(database, number), record):
                refused.add(kind)
    assert refused == set(AS_TEXT.get(name, [])) | ({"text", "timestamptz"} & refused if name == "excel" else set())


def values_of(url: str, column: str) -> list[bytes]:
    found: list[bytes] = []
    with PostgresSource(url).session() as session:
        session.begin()
        query = f"SELECT {column} FROM types WHERE {column} IS NOT NULL"
        session.copy_out(query, "FORMAT csv", found.append)
    return found


def column_of(url: str, number: int) -> Column:
    from tests.support.servers import run_sql

    query = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'types'::regclass AND attname = %s"
    return Column(name="c", type=run_sql(url, query, (f"c{number}",))[0][0])


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


def make_floats(table: StepTable) -> None:
    table.sql("CREATE TABLE events (id int PRIMARY KEY, f float8); INSERT INTO events VALUES (1, 0.1), (2, 1e100)")


def test_a_cleanup_with_a_format_that_changes_values_is_refused() -> None:
    spec: dict[str, Any] = {"table": "events", "cleanup": "after_archive"}
    for layout in ({"type": "parquet", "conversions": {"n": "float"}}, {"csv": {"neutralise_formulas": True}}):
        with pytest.raises(ValueError, match="changes values"):
            from export_pipelines.specs.table import TableSpec

            TableSpec.model_validate({**spec, "format": layout})
