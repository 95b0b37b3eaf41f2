"""A stand-in for the parser of CSV: only what tests of loading need."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from typing import Any

from export_pipelines.formats.parsing.base import BadRecord, Batch, Open, Parsed
from export_pipelines.specs.load import FileSpec


def parse(spec: FileSpec, columns: Sequence[str] | None, open_stream: Open, name: str) -> Parsed:
    def raw() -> Iterator[bytes]:
        with open_stream() as stream:
            source: Any = gzip.GzipFile(fileobj=stream) if name.endswith(".gz") else stream
            while piece := source.read(1 << 18):
                yield piece

    text = io.StringIO(b"".join(raw()).decode(), newline="")
    reader = csv.reader(text)
    header = tuple(next(reader, ())) if spec.header else tuple(columns or ())

    def batches() -> Iterator[Batch | BadRecord]:
        before = reader.line_num
        for record in reader:
            line, before = before + 1, reader.line_num
            if len(record) != len(header):
                yield BadRecord(line, f"{len(record)} values instead of {len(header)}", ",".join(record))
                continue
            fields = ["" if v in ("", *spec.null_words) else '"' + v.replace('"', '""') + '"' for v in record]
            yield Batch(line, [line], (",".join(fields) + "\n").encode())

    return Parsed(header, batches(), not spec.null_words and not spec.trim, raw)
