"""Formats and compressions of files, as definitions name them."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from export_pipelines.specs.model import SpecModel


class CsvSpec(SpecModel):
    """Options of CSV, named as in PostgreSQL's COPY."""

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """One ASCII character between values."""
    header: bool = True
    """Whether the first line has the column names."""
    null: str = ""
    """What stands for NULL, unquoted. An empty string is always written as `""`, so the two stay apart."""
    quote: str = Field(default='"', min_length=1, max_length=1)
    """The character around values that need it."""

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


class FormatSpec(SpecModel):
    """The file format and its options."""

    type: str = "csv"
    """`csv` (more to come)."""
    csv: CsvSpec = CsvSpec()
    """Options of `csv`."""


class Compression(StrEnum):
    """Compression of the files."""

    GZIP = "gzip"
    ZSTD = "zstd"
    NONE = "none"
