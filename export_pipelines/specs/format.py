"""What `format:` may say: the kind of file, its options, and what becomes of values that it cannot hold."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Literal

from pydantic import Field, field_validator, model_validator

from export_pipelines.specs.model import SpecModel

ANY_COLUMN = "*"
"""In `conversions`: every column that needs one and is not named."""

_CONVERSION = re.compile(r"text|checked|float|datetime|decimal\((\d+),(\d+)\)")
_LOSSY = ("float", "datetime")


class FormatName(StrEnum):
    """Formats of files."""

    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    PARQUET = "parquet"
    EXCEL = "excel"


class CsvSpec(SpecModel):
    """Options of CSV; the first four are named as in PostgreSQL's COPY."""

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """One ASCII character between values."""
    header: bool = True
    """Whether the first line has the column names."""
    null: str = ""
    """What stands for NULL, unquoted. An empty string is always written as `""`, so the two stay apart."""
    quote: str = Field(default='"', min_length=1, max_length=1)
    """The character around values that need it."""
    bom: bool = False
    """Whether the file begins with the mark by which Excel knows UTF-8."""
    line_end: Literal["lf", "crlf"] = "lf"
    """`lf`, or `crlf` as RFC 4180 has it. Line ends within values stay as they are."""
    neutralise_formulas: bool = False
    """Whether a `'` is put before values that a spreadsheet would take for a formula: those that begin with one of
    = + - @, a tab or a line end, and are no numbers. Values are changed: not together with a cleanup."""

    @model_validator(mode="after")
    def _unambiguous(self) -> CsvSpec:
        for name in ("delimiter", "quote"):
            sign = getattr(self, name)
            # Digits, letters and parentheses are what the identities of rows are written with.
            if not sign.isascii() or sign.isalnum() or sign in "()\r\n\0":
                raise ValueError(f"{name} {sign!r} cannot be used; take an ASCII sign, no letter, digit or parenthesis")
        if self.quote in (self.delimiter, ","):
            raise ValueError(f"quote {self.quote!r} must not be a comma or the delimiter")
        if any(sign in self.null for sign in (self.delimiter, self.quote, "\r", "\n")):
            raise ValueError(f"null {self.null!r} must not contain the delimiter, the quote or a line end")
        return self

    @property
    def native(self) -> bool:
        """Whether a server writes it by itself."""
        return not self.bom and self.line_end == "lf" and not self.neutralise_formulas


PLAIN = CsvSpec(header=False)
"""The dialect in which records are on their way into another format, and out of it."""


class ParquetSpec(SpecModel):
    """Options of Parquet, whose pages are always compressed by zstd."""

    row_group_rows: int = Field(default=100_000, ge=1, le=10_000_000)
    """Rows of a row group at most. One is written earlier when it has 32 MiB, so that memory stays bounded."""


class ExcelSpec(SpecModel):
    """Options of Excel workbooks (.xlsx)."""

    sheet: str = Field(default="data", min_length=1, max_length=31)
    """Name of the one sheet."""

    @field_validator("sheet")
    @classmethod
    def _allowed(cls, value: str) -> str:
        if re.search(r"[\[\]:*?/\\\x00-\x1f]", value) or value.startswith("'") or value.endswith("'"):
            raise ValueError(f"{value!r} is no name of a sheet: leave out [ ] : * ? / \\ and a ' at either end")
        return value


class FormatSpec(SpecModel):
    """The file format and its options."""

    type: FormatName = FormatName.CSV
    """`csv`, `json` (one array), `jsonl` (an object a line), `parquet` or `excel` (for small ones)."""
    csv: CsvSpec = CsvSpec()
    """Options of `csv`."""
    parquet: ParquetSpec = ParquetSpec()
    """Options of `parquet`."""
    excel: ExcelSpec = ExcelSpec()
    """Options of `excel`."""
    conversions: dict[str, str] = {}
    """Columns whose values the format cannot hold exactly, and what to write instead: `text` (exact), `checked` (Excel:
    a number or time; a value that it cannot hold is an error), `decimal(p,s)` (Parquet: the same), `float` (the nearest
    double) or `datetime` (Excel: to the millisecond). The last two change values: not together with a cleanup. `"*"`
    names all columns that need one. CSV needs none."""

    @field_validator("conversions")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        for column, conversion in value.items():
            found = _CONVERSION.fullmatch(conversion)
            if found is None:
                raise ValueError(
                    f"{column}: {conversion!r} is no conversion: text, checked, decimal(p,s), float or datetime"
                )
            if found[1] and not (1 <= int(found[1]) <= 76 and int(found[2]) <= int(found[1])):
                raise ValueError(f"{column}: {conversion!r} has more than 76 digits, or more of them after the point")
        return value

    @property
    def native(self) -> bool:
        """Whether a server writes the file's bytes by itself."""
        return self.type == "csv" and self.csv.native

    @property
    def extension(self) -> str:
        """The extension of its files, before that of a compression."""
        return ".xlsx" if self.type is FormatName.EXCEL else f".{self.type}"

    @property
    def packed(self) -> bool:
        """Whether files are compressed within, so that compressing them again is of no use."""
        return self.type in (FormatName.PARQUET, FormatName.EXCEL)

    @property
    def lossy(self) -> list[str]:
        """What of it changes values, in words."""
        declared = {} if self.type == "csv" else self.conversions
        found = [f"{column}: {how}" for column, how in declared.items() if how in _LOSSY]
        if self.type == "csv" and self.csv.neutralise_formulas:
            found.append("neutralise_formulas")
        return found


class Compression(StrEnum):
    """Compression of the files."""

    GZIP = "gzip"
    ZSTD = "zstd"
    NONE = "none"

    @property
    def extension(self) -> str:
        """The extension of its files, behind that of their format."""
        return {"gzip": ".gz", "zstd": ".zst", "none": ""}[self]
