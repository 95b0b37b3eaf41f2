"""Formats of files: from the records of a source, as plain CSV, into the bytes of a file.

Records are *plain*: lines of CSV in PostgreSQL's spelling and the dialect `specs.format.PLAIN`, each with its line end,
NULL as nothing between delimiters and the empty string as `""`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from export_pipelines.errors import FormatError
from export_pipelines.formats.fields import Field
from export_pipelines.formats.problems import problems
from export_pipelines.formats.texts import quoted
from export_pipelines.specs.format import PLAIN, FormatSpec

__all__ = ["FormatWriter", "extension", "media_type", "open_writer", "problems"]

_MEDIA = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
    "excel": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}


class FormatWriter(Protocol):
    """Turns records into a file's bytes, in bounded memory. Use: begin, encode as often as needed, finish; close at the
    end, whatever happened. Bytes are kept back until they are worth the work: `encode` may return none."""

    exact: bool
    """Whether all that was encoded is read back byte for byte by `readers.read_records`. Where it is not, values were
    spelt in another way (floats of Parquet), or changed by a conversion that was declared."""

    def begin(self) -> bytes:
        """The first bytes."""

    def encode(self, records: list[bytes]) -> bytes:
        """Take records, each with its line end, without a header.

        Raises:
            FormatError: the format cannot hold a value, and nothing was declared; names the column, and what to do.
        """

    def finish(self) -> Iterator[bytes]:
        """All that is left. Raises FormatError: as `encode`."""

    def close(self) -> None:
        """Let go of scratch space. May be called twice."""


class PlainWriter:
    """CSV as the records are: nothing is done but the header."""

    exact = True

    def __init__(self, header: bool, fields: Sequence[Field]) -> None:
        self._header = (
            ",".join(quoted(field.name, field, single=len(fields) == 1) for field in fields) if header else None
        )

    def begin(self) -> bytes:
        return b"" if self._header is None else f"{self._header}\n".encode()

    def encode(self, records: list[bytes]) -> bytes:
        return b"".join(records)

    def finish(self) -> Iterator[bytes]:
        yield b""

    def close(self) -> None: ...


def open_writer(
    spec: FormatSpec, fields: Sequence[Field], *, dictionary: Mapping[str, Any] | None = None
) -> FormatWriter:
    """A writer for files of a format.

    `dictionary` is the data dictionary, for the metadata of Parquet: `title`, `description`, and `columns` as a mapping
    of names to descriptions.

    Raises:
        FormatError: there are `problems`.
    """
    if wrong := problems(spec, fields):
        raise FormatError("; ".join(wrong))
    if spec.native and spec.csv.model_copy(update={"header": False}) == PLAIN:
        return PlainWriter(spec.csv.header, fields)
    if spec.type == "csv":
        from export_pipelines.formats.delimited import DelimitedWriter

        return DelimitedWriter(spec.csv, fields)
    if spec.type in ("json", "jsonl"):
        from export_pipelines.formats.json import JsonWriter

        return JsonWriter(spec, fields)
    if spec.type == "parquet":
        from export_pipelines.formats.parquet import ParquetWriter

        return ParquetWriter(spec, fields, dictionary or {})
    from export_pipelines.formats.excel import ExcelWriter

    return ExcelWriter(spec, fields)


def extension(spec: FormatSpec) -> str:
    """The extension of its files, before that of a compression."""
    return spec.extension


def media_type(spec: FormatSpec) -> str:
    """What HTTP calls it."""
    return _MEDIA[spec.type]
