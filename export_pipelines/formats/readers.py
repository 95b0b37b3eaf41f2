"""Formats of files: back from a file's bytes to the records that were encoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from export_pipelines.formats.csv import records, split_header
from export_pipelines.formats.fields import Field
from export_pipelines.specs.format import PLAIN, FormatSpec


def read_records(spec: FormatSpec, fields: Sequence[Field], raw: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The records of a file, plain as they were encoded, without a header, in lists. Memory: some mebibytes; what must
    be read from its end (Parquet, Excel) is copied to scratch space first.

    Raises:
        IntegrityError: it is no file of the format, or has other columns. ScratchError: no room for the copy.
    """
    if spec.native and spec.csv.model_copy(update={"header": False}) == PLAIN:
        stream = iter(raw)
        return records(split_header(stream, spec.csv)[1] if spec.csv.header else stream, spec.csv)
    if spec.type == "csv":
        from export_pipelines.formats.delimited import read_delimited

        return read_delimited(spec.csv, fields, raw)
    if spec.type in ("json", "jsonl"):
        from export_pipelines.formats.json import LineReader, lines_of

        reader = LineReader(spec, fields)
        lines = lines_of(raw, array=spec.type == "json")
        return (list(map(reader.record, found)) for found in lines)
    if spec.type == "parquet":
        from export_pipelines.formats.parquet_reader import read_parquet

        return read_parquet(spec, fields, raw)
    from export_pipelines.formats.excel_reader import read_excel

    return read_excel(spec, fields, raw)
