"""Parquet back into records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from export_pipelines.errors import IntegrityError
from export_pipelines.formats.arrow import text_of
from export_pipelines.formats.fields import Field
from export_pipelines.formats.texts import records_of
from export_pipelines.scratch import scratch_copy
from export_pipelines.specs.format import FormatSpec

_ROWS = 1 << 14
_CELLS = 1 << 19


def read_parquet(spec: FormatSpec, fields: Sequence[Field], raw: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The records, plain; values in the source's spelling. Memory: a row group, and some thousand rows.

    Raises:
        IntegrityError: it is no Parquet, or has other columns.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with scratch_copy(raw) as path:
        try:
            with parquet.ParquetFile(path) as file:
                if file.schema_arrow.names != [field.name for field in fields]:
                    raise IntegrityError("the Parquet has other columns than the export")
                rows = max(1, min(_ROWS, _CELLS // max(1, len(fields))))
                for batch in file.iter_batches(batch_size=rows):
                    texts = [text_of(c, field, c.type) for c, field in zip(batch.columns, fields, strict=True)]
                    yield records_of(texts, fields)
        except (pa.ArrowException, OSError) as error:
            raise IntegrityError(f"the Parquet cannot be read: {str(error).splitlines()[0]}") from error
