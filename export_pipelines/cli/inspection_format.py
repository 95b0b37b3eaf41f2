"""What `check` looks at for `format`: whether the file can hold the types of a table's columns."""

from __future__ import annotations

from collections.abc import Sequence

from export_pipelines.cli.places import table_error
from export_pipelines.errors import SpecError
from export_pipelines.formats.fields import fields_of
from export_pipelines.formats.problems import problems, unknown_conversions
from export_pipelines.manifest import Column
from export_pipelines.specs.table import TableDefinition


def format_errors(table: TableDefinition, columns: Sequence[Column]) -> list[SpecError]:
    """What the format does not hold exactly without a conversion, and conversions of columns that there are not."""
    spec = table.spec.format
    if spec.native and not spec.conversions:
        return []
    fields = fields_of(columns, table.engine)
    unfit = [table_error(table, message, ("format",)) for message in problems(spec, fields)]
    hint = f"it has {', '.join(field.name for field in fields)}"
    path = ("format", "conversions")
    return unfit + [table_error(table, message, path, hint) for message in unknown_conversions(spec, fields)]
