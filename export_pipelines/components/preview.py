"""The first rows of an exported file as a table, read from the file as it was published."""

from __future__ import annotations

import gzip
import io
import logging
from typing import BinaryIO, cast

from export_pipelines.manifest import ExportRecord
from export_pipelines.stores.base import Store

WIDTH = 60
"""Characters of a value that are shown."""

_PIECE = 1 << 16
_LARGEST = 1 << 26
"""Stored bytes of a file that must be read whole for its first rows."""

log = logging.getLogger(__name__)


def preview(store: Store, record: ExportRecord, rows: int) -> str:
    """The first rows as a Markdown table; empty if they cannot be read, which is no reason to fail an export."""
    if record.layout is not None and record.layout.packed and record.file.size > _LARGEST:
        return ""
    try:
        with store.open(record.file.key) as stored, _decompressed(stored, record.compression) as raw:
            return _table(raw, record, rows)
    except Exception as error:
        log.warning("no preview of %s: %s", record.file.key, error)
        return ""


def _decompressed(stored: BinaryIO, compression: str) -> BinaryIO:
    if compression == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stored, mode="rb"))
    if compression == "zstd":
        import zstandard

        return cast(BinaryIO, zstandard.ZstdDecompressor().stream_reader(stored))
    return stored


def _table(raw: BinaryIO, record: ExportRecord, rows: int) -> str:
    if record.layout is not None:
        raw, record = _as_csv(raw, record, rows), record.model_copy(update={"layout": None})
    # A second to import, only where rows are shown.
    import pandas as pd

    names = [column.name for column in record.columns]
    with io.TextIOWrapper(raw, encoding="utf-8", newline="") as text:
        frame = pd.read_csv(
            text,
            nrows=rows,
            header=None,
            skiprows=1 if record.csv.header else 0,
            names=range(len(names)),
            sep=record.csv.delimiter,
            quotechar=record.csv.quote,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            index_col=False,
        )
    shown = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    lines = [[_cell(name) for name in names], ["---"] * len(names), *shown]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _as_csv(raw: BinaryIO, record: ExportRecord, rows: int) -> BinaryIO:
    """The first records of a file of another format, as CSV."""
    from export_pipelines.steps.records import records_in

    found: list[bytes] = []
    for more in records_in(record, iter(lambda: raw.read(_PIECE), b"")):
        found += more
        if len(found) >= rows:
            break
    return io.BytesIO(b"".join(found[:rows]))


def _cell(value: object) -> str:
    text = str(value)
    text = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
    for character, written in (("\\", "\\\\"), ("|", "\\|"), ("\r", " "), ("\n", " "), ("<", "&lt;")):
        text = text.replace(character, written)
    return text
