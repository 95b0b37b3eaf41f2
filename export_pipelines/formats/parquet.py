"""Parquet, compressed by zstd, in row groups, with the data dictionary in its metadata.

Every value is compared with its text before it is written: what would not come back is an error, unless it is a float
or an instant that is spelt in another way, or was declared to be converted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from export_pipelines.formats.arrow import arrow_type, typed
from export_pipelines.formats.batching import BatchWriter
from export_pipelines.formats.fields import Field
from export_pipelines.formats.sink import Sink
from export_pipelines.specs.format import FormatSpec

_GROUP_BYTES = 1 << 25
_ZSTD_LEVEL = 3


class ParquetWriter(BatchWriter):
    """See `formats.writers.FormatWriter`. Memory: a row group, some times over."""

    def __init__(self, spec: FormatSpec, fields: Sequence[Field], dictionary: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self._types = [arrow_type(spec, field) for field in fields]
        self._schema = _schema(fields, self._types, dictionary)
        self._rows_of_group = spec.parquet.row_group_rows
        self._sink = Sink()
        self._writer: Any = None
        self._group: list[Any] = []
        self._rows = self._bytes_of_group = 0

    def begin(self) -> bytes:
        from pyarrow import parquet

        self._writer = parquet.ParquetWriter(
            self._sink, self._schema, compression="zstd", compression_level=_ZSTD_LEVEL, store_schema=True
        )
        return self._sink.taken()

    def take(self, columns: list[Any]) -> bytes:
        import pyarrow as pa

        arrays = []
        for column, field, kind in zip(columns, self.fields, self._types, strict=True):
            values, same = typed(column, field, kind)
            self.exact &= same
            arrays.append(values.cast(kind) if values.type != kind else values)
        batch = pa.record_batch(arrays, schema=self._schema)
        self._group.append(batch)
        self._rows += batch.num_rows
        self._bytes_of_group += batch.nbytes
        while self._rows >= self._rows_of_group:
            self._write(self._rows_of_group)
        if self._bytes_of_group >= _GROUP_BYTES:
            self._write(self._rows)
        return self._sink.taken()

    def end(self) -> Iterator[bytes]:
        if self._rows:
            self._write(self._rows)
        self._writer.close()
        yield self._sink.taken()

    def close(self) -> None:
        self._group, self._writer = [], None

    def _write(self, rows: int) -> None:
        """Write the first rows that wait as a row group."""
        import pyarrow as pa

        table = pa.Table.from_batches(self._group)
        self._writer.write_table(table.slice(0, rows), row_group_size=rows)
        rest = table.slice(rows).combine_chunks()
        self._group = rest.to_batches()
        self._rows, self._bytes_of_group = rest.num_rows, rest.nbytes


def _schema(fields: Sequence[Field], types: Sequence[Any], dictionary: Mapping[str, Any]) -> Any:
    """The columns, with what is known of them as metadata: `description` and `source_type` of each; `title`,
    `description`, and the whole dictionary as JSON under `data_dictionary`."""
    import pyarrow as pa

    told = dictionary.get("columns") or {}
    columns = []
    for field, kind in zip(fields, types, strict=True):
        about = {"source_type": field.type}
        if told.get(field.name):
            about["description"] = str(told[field.name])
        columns.append(pa.field(field.name, kind, metadata=about))
    whole = {name: str(dictionary[name]) for name in ("title", "description") if dictionary.get(name)}
    if dictionary:
        whole["data_dictionary"] = json.dumps(dictionary, ensure_ascii=False, sort_keys=True)
    return pa.schema(columns, metadata=whole or None)
