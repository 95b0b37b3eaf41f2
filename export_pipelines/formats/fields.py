"""What the columns of a file hold, by the names of their types at the source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from export_pipelines.manifest import Column

Engine = Literal["postgresql", "mysql", "opensearch"]


class Kind(StrEnum):
    """The kinds of values that formats tell apart. What is of none of them is OTHER, and held as text."""

    BOOLEAN = "boolean"
    INTEGER = "integer"
    DECIMAL = "decimal"
    NUMERIC = "numeric"
    """Decimal digits without a bound."""
    FLOAT = "float"
    TEXT = "text"
    DATE = "date"
    TIME = "time"
    TIMESTAMP = "timestamp"
    TIMESTAMPTZ = "timestamptz"
    INTERVAL = "interval"
    JSON = "json"
    BINARY = "binary"
    UUID = "uuid"
    OTHER = "other"


NUMBERS = frozenset({Kind.INTEGER, Kind.DECIMAL, Kind.NUMERIC, Kind.FLOAT})


@dataclass(frozen=True)
class Field:
    """A column. `type` is as the source spells it; `engine` says how its values are spelt."""

    name: str
    kind: Kind
    type: str
    precision: int | None = None
    """Digits of a decimal; digits after the second of a time, where that is bounded."""
    scale: int | None = None
    bits: int | None = None
    """Of integers and floats."""
    signed: bool = True
    engine: Engine = "postgresql"
    quoted: bool = False
    """Whether the source puts all values in quotes, needed or not."""


@dataclass(frozen=True)
class _Type:
    kind: Kind
    bits: int | None = None


_POSTGRES = {
    "boolean": _Type(Kind.BOOLEAN),
    "smallint": _Type(Kind.INTEGER, 16),
    "integer": _Type(Kind.INTEGER, 32),
    "bigint": _Type(Kind.INTEGER, 64),
    "numeric": _Type(Kind.NUMERIC),
    "real": _Type(Kind.FLOAT, 32),
    "double precision": _Type(Kind.FLOAT, 64),
    "text": _Type(Kind.TEXT),
    "character varying": _Type(Kind.TEXT),
    "character": _Type(Kind.TEXT),
    "bpchar": _Type(Kind.TEXT),
    "name": _Type(Kind.TEXT),
    "date": _Type(Kind.DATE),
    "time": _Type(Kind.TIME),
    "time without time zone": _Type(Kind.TIME),
    "timestamp without time zone": _Type(Kind.TIMESTAMP),
    "timestamp with time zone": _Type(Kind.TIMESTAMPTZ),
    "interval": _Type(Kind.INTERVAL),
    "json": _Type(Kind.JSON),
    "jsonb": _Type(Kind.JSON),
    "bytea": _Type(Kind.BINARY),
    "uuid": _Type(Kind.UUID),
}
_MYSQL = {
    "tinyint": _Type(Kind.INTEGER, 8),
    "smallint": _Type(Kind.INTEGER, 16),
    "mediumint": _Type(Kind.INTEGER, 32),
    "int": _Type(Kind.INTEGER, 32),
    "bigint": _Type(Kind.INTEGER, 64),
    "year": _Type(Kind.INTEGER, 16),
    "float": _Type(Kind.FLOAT, 32),
    "double": _Type(Kind.FLOAT, 64),
    "decimal": _Type(Kind.DECIMAL),
    "date": _Type(Kind.DATE),
    "datetime": _Type(Kind.TIMESTAMP),
    # The text is a local time of the session's zone, and does not say which.
    "timestamp": _Type(Kind.TIMESTAMP),
    # Up to 838 hours, either way: a length of time.
    "time": _Type(Kind.INTERVAL),
    "bit": _Type(Kind.OTHER),
    "json": _Type(Kind.JSON),
    "uuid": _Type(Kind.UUID),
}
_MYSQL_TEXT = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set")
_OPENSEARCH = {
    "boolean": _Type(Kind.BOOLEAN),
    "byte": _Type(Kind.INTEGER, 8),
    "short": _Type(Kind.INTEGER, 16),
    "integer": _Type(Kind.INTEGER, 32),
    "long": _Type(Kind.INTEGER, 64),
    "unsigned_long": _Type(Kind.INTEGER, 64),
    "float": _Type(Kind.FLOAT, 32),
    "half_float": _Type(Kind.FLOAT, 32),
    "scaled_float": _Type(Kind.FLOAT, 64),
    "double": _Type(Kind.FLOAT, 64),
    "object": _Type(Kind.JSON),
    "nested": _Type(Kind.JSON),
    "flat_object": _Type(Kind.JSON),
    "keyword": _Type(Kind.TEXT),
    "text": _Type(Kind.TEXT),
}
_NAMED = re.compile(r"\s*([^(\[]*?)\s*(?:\(([-\d, ]*)\))?\s*([^(\[]*)((?:\[\])+)?\s*", re.DOTALL)


def fields_of(columns: Sequence[Column], engine: Engine) -> tuple[Field, ...]:
    """The columns of a file by their types: as format_type() spells them, COLUMN_TYPE, or a mapping of OpenSearch.

    Arrays, ranges, domains, enums, bits, money and all else that formats do not know are OTHER.
    """
    read = {"postgresql": _postgres, "mysql": _mysql, "opensearch": _opensearch}[engine]
    return tuple(read(column) for column in columns)


def _postgres(column: Column) -> Field:
    found = _NAMED.fullmatch(column.type)
    other = Field(column.name, Kind.OTHER, column.type)
    if found is None or found[4]:
        return other
    name = f"{found[1]} {found[3].strip()}".strip()
    numbers = [int(number) for number in found[2].split(",")] if found[2] else []
    known = _POSTGRES.get(name)
    if known is None:
        # `interval year to month` and its like.
        return Field(column.name, Kind.INTERVAL, column.type) if name.startswith("interval ") else other
    if known.kind is Kind.NUMERIC and numbers:
        scale = numbers[1] if len(numbers) > 1 else 0
        return Field(column.name, Kind.DECIMAL, column.type, numbers[0], scale)
    precision = numbers[0] if numbers and known.kind in (Kind.TIME, Kind.TIMESTAMP, Kind.TIMESTAMPTZ) else None
    return Field(column.name, known.kind, column.type, precision, bits=known.bits)


def _mysql(column: Column) -> Field:
    name, arguments, unsigned = _mysql_parts(column.type)
    known = _MYSQL.get(name)
    kind = known.kind if known else Kind.TEXT if name in _MYSQL_TEXT else Kind.OTHER
    kind = Kind.BINARY if _is_binary(name) else kind
    digits = [int(number) for number in arguments.split(",")] if re.fullmatch(r"[\d, ]+", arguments) else []
    precision = scale = None
    if kind is Kind.DECIMAL:
        precision, scale = (*digits, 0)[:2] if digits else (10, 0)
    elif kind is Kind.TIMESTAMP:
        precision = digits[0] if digits else 0
    quoted = kind in (Kind.TEXT, Kind.JSON, Kind.UUID) or (kind is Kind.OTHER and name != "bit")
    bits = known.bits if known else None
    return Field(column.name, kind, column.type, precision, scale, bits, not unsigned, "mysql", quoted)


def _mysql_parts(text: str) -> tuple[str, str, bool]:
    """Name, arguments and `unsigned` of a type."""
    found = re.match(r"\s*(\w+)\s*(?:\(([^)]*)\))?(.*)", text.lower(), re.DOTALL)
    if found is None:
        return "", "", False
    name = {"integer": "int", "numeric": "decimal"}.get(found[1], found[1])
    return name, found[2] or "", "unsigned" in found[3] or name == "year"


def _is_binary(name: str) -> bool:
    spatial = ("geometry", "point", "linestring", "polygon", "multi", "geomcollection")
    return name in ("binary", "varbinary", "vector") or name.endswith("blob") or name.startswith(spatial)


def _opensearch(column: Column) -> Field:
    known = _OPENSEARCH.get(column.type, _Type(Kind.OTHER))
    return Field(
        column.name,
        known.kind,
        column.type,
        bits=known.bits,
        signed=column.type != "unsigned_long",
        engine="opensearch",
    )
