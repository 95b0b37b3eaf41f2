"""Types of MySQL and MariaDB: the text of a value as a field of CSV, and what a column's type is called.

What a field looks like, by the type of its column:

- Integers, decimals and years as they are: `-128`, `18446744073709551615`, `1.50`, `0000`. ZEROFILL is dropped: `42`.
- float and double: the shortest text from which the same double is read again, of a float that of its exact value, and
  no rounding to the digits of `float(10,2)`.
- Dates and times as the server prints them, zero dates (`0000-00-00`) and times beyond 24 hours included.
- bit(n): n binary digits.
- Binary strings and spatial values: `\\x` and hexadecimal digits in lower case, as PostgreSQL's bytea. Of a spatial
  value these are 4 bytes of SRID (little endian) and WKB with x before y, which is what the server stores.
- All others are strings in UTF-8, always in quotes, so that an empty one and NULL stay apart.

A value whose text is larger than the server's `max_allowed_packet` becomes NULL on the server (with a warning), and
with it the whole record, which no record is otherwise: the reader takes it for an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export_pipelines.manifest import Column
from export_pipelines.specs.table import CsvSpec
from export_pipelines.sql_mysql import quote_literal

_BINARY = 63
NOT_NULL, _UNSIGNED, _ZEROFILL = 1, 32, 64
_NO_DECIMALS = 31
_BYTES_A_CHARACTER = 4
_WIDEST_VARCHAR = 16383
"""Characters of utf8mb4."""

_INTEGERS = {1: "tinyint", 2: "smallint", 3: "int", 8: "bigint", 9: "mediumint"}
_REALS = {4: "float", 5: "double"}
_DECIMALS = (0, 246)
_TIMESTAMP = 7
_TIMES = {_TIMESTAMP: "timestamp", 10: "date", 11: "time", 12: "datetime", 14: "date"}
_NULL, _YEAR, _BIT, _JSON, _GEOMETRY, _CHAR = 6, 13, 16, 245, 255, 254
_BLOBS = (249, 250, 251, 252)
_NUMBERS = frozenset({*_INTEGERS, *_REALS, *_DECIMALS})
_PLAIN = _NUMBERS | _TIMES.keys() | {_NULL, _YEAR, _BIT}

_SIGNS = frozenset("0123456789abcdefx\\+-.: ")
"""Of what is not in quotes."""

_LIKE = {
    **{name: (code,) for code, name in (_INTEGERS | _REALS | _TIMES).items()},
    "decimal": _DECIMALS,
    "date": (10, 14),
    "year": (_YEAR,),
    "bit": (_BIT,),
    "json": (_JSON, *_BLOBS),
}
_SPATIAL = ("geometry", "point", "linestring", "polygon", "multi", "geomcollection")

_TO_POSTGRES = {
    "tinyint": "smallint",
    "smallint": "smallint",
    "mediumint": "integer",
    "int": "integer",
    "bigint": "bigint",
    "smallint unsigned": "integer",
    "int unsigned": "bigint",
    "bigint unsigned": "numeric(20,0)",
    "float": "real",
    "double": "double precision",
    "year": "smallint",
    "date": "date",
    "time": "interval",
    "json": "json",
    "uuid": "uuid",
    "inet4": "inet",
    "inet6": "inet",
}


# No text in UTF-8 has either.
_MARK, _BETWEEN = b"\xff", b"\xfe"
_MARK_SQL = "UNHEX('FF')"


@dataclass(frozen=True)
class ResultColumn:
    """A column of a result, as the protocol describes it. `length` is in bytes, of text in the connection's charset.

    `database`, `org_table` and `org_name` are empty of what is computed. MariaDB gives the alias of a derived table for
    `org_table`: that the names are those of a table does not prove that the column is one of it.
    """

    name: str
    type_code: int
    charset: int
    flags: int
    length: int
    decimals: int
    database: str
    org_table: str
    org_name: str

    @property
    def binary(self) -> bool:
        """Whether its fields are written as hexadecimal digits."""
        return self.type_code == _GEOMETRY or (
            self.charset == _BINARY and self.type_code not in _PLAIN and self.type_code != _JSON
        )

    @property
    def never_null_instant(self) -> bool:
        """Whether it is a TIMESTAMP NOT NULL, into which an INSERT of NULL may put the present time."""
        return self.type_code == _TIMESTAMP and bool(self.flags & NOT_NULL)


def field(column: ResultColumn, reference: str, csv: CsvSpec) -> str:
    """An SQL expression that gives a value as one field of CSV, in utf8mb4. `reference` is SQL that names the column.

    It is never NULL but for a value that is larger than `max_allowed_packet`. What is not a string stands in quotes
    only if some sign of it means something else in this dialect.

    Where the quotes of a value are to stand the server writes a byte that is in no text, and `quoted` does the rest:
    MariaDB's REPLACE needs a time that grows with the square of the quotes in a text, 80 ms for one of 20 KB.
    """
    value = _text(column, reference)
    plain = column.type_code in _PLAIN or column.binary
    if not plain or _ambiguous(csv):
        value = f"CONCAT({_MARK_SQL}, CAST({value} AS BINARY), {_MARK_SQL})"
    # Of what a view computes on the empty side of an outer join the flag is wrong.
    if column.flags & NOT_NULL and column.database:
        return value
    null = quote_literal(csv.null)
    # A text that is too long for the server is NULL, too: it must not pass for a NULL of the column.
    if column.type_code in _PLAIN:
        return f"IFNULL({value}, {null})"
    return f"IF({reference} IS NULL, {null}, {value})"


def quoted(texts: list[bytes], quote: str) -> list[bytes]:
    """Texts made of fields, with their quotes: those around values, and those within, which are doubled.

    Raises UnicodeDecodeError: one is not in UTF-8.
    """
    whole = _BETWEEN.join(texts)
    if _MARK not in whole:
        return texts
    sign = quote.encode()
    if sign in whole:
        whole = whole.replace(sign, sign + sign)
    whole = whole.replace(_MARK, sign)
    # Of half a surrogate pair the server makes three bytes that nobody could read back.
    whole.replace(_BETWEEN, b"").decode()
    return whole.split(_BETWEEN)


def comparable(column: ResultColumn, reference: str) -> str:
    """An SQL expression that is equal (`<=>`) for two values of a column only if they are the same byte for byte."""
    if column.type_code in _PLAIN:
        return _text(column, reference)
    return f"CAST({reference} AS BINARY)"


def _text(column: ResultColumn, reference: str) -> str:
    code = column.type_code
    if column.binary:
        return f"CONCAT(_utf8mb4 X'5C78', LOWER(HEX({reference})))"
    if code == _BIT:
        return f"LPAD(BIN({reference} + 0), {column.length}, '0')"
    if code == 4 or (code == 5 and column.decimals != _NO_DECIMALS):
        return f"CAST({reference} AS DOUBLE)"
    if code in _NUMBERS and column.flags & _ZEROFILL:
        return f"({reference} + 0)"
    return reference if code in _PLAIN else f"CONVERT({reference} USING utf8mb4)"


def _ambiguous(csv: CsvSpec) -> bool:
    """Whether a number or time without quotes could be taken for something else."""
    return bool({csv.delimiter, csv.quote} & _SIGNS) or (csv.null != "" and _SIGNS.issuperset(csv.null))


def literal(column: ResultColumn, text: str) -> str:
    """A field's text (without the quotes of CSV) as an SQL literal of the column's type. Never of a NULL."""
    if column.binary:
        return f"X'{text.removeprefix(chr(92) + 'x')}'"
    if column.type_code == _BIT:
        return f"b'{text}'"
    return text if column.type_code in _NUMBERS else quote_literal(text)


def declared_types(columns: Sequence[ResultColumn], base: Mapping[tuple[str, str, str], str]) -> tuple[Column, ...]:
    """The columns with their types as a CREATE TABLE spells them.

    `base` has the COLUMN_TYPE of columns of tables by database, table and name. It counts where a column is plainly one
    of these; the type of what is computed is derived from what the protocol says of it.
    """
    found = []
    for column in columns:
        declared = base.get((column.database, column.org_table, column.org_name), "")
        fits = declared and _agrees(column, declared)
        found.append(Column(name=column.name, type=declared if fits else _derived(column)))
    return tuple(found)


def _agrees(column: ResultColumn, declared: str) -> bool:
    """Whether a column can be of that type: an alias may have the name of a table that it is not."""
    kind, arguments, unsigned = _parts(declared)
    if bool(column.flags & _UNSIGNED) != unsigned and kind in ("decimal", *_INTEGERS.values(), *_REALS.values()):
        return False
    if kind == "decimal":
        return column.type_code in _DECIMALS and _derived(column).startswith(f"decimal({arguments})")
    if kind in ("datetime", "timestamp", "time"):
        return column.type_code in _LIKE[kind] and column.decimals == int(arguments or 0)
    if kind == "bit":
        return column.type_code == _BIT and column.length == int(arguments or 1)
    if kind in _LIKE:
        return column.type_code in _LIKE[kind]
    if kind in ("char", "varchar"):
        return not column.binary and column.length == int(arguments) * _BYTES_A_CHARACTER
    if kind in ("binary", "varbinary"):
        return column.binary and column.length == int(arguments)
    return column.type_code not in _PLAIN and column.binary == _is_binary(kind)


def _derived(column: ResultColumn) -> str:
    """The type of what a query computes."""
    code = column.type_code
    unsigned = " unsigned" if column.flags & _UNSIGNED else ""
    if code in _INTEGERS or code in _REALS:
        return (_INTEGERS | _REALS)[code] + unsigned
    if code in _DECIMALS:
        # The length has room for a sign and a point.
        digits = column.length - (not unsigned) - (column.decimals > 0)
        scale = min(column.decimals, 38)
        return f"decimal({min(max(digits, scale, 1), 65)},{scale}){unsigned}"
    if code in _TIMES:
        precise = 0 < column.decimals <= 6
        return f"{_TIMES[code]}({column.decimals})" if precise else _TIMES[code]
    if code in (_YEAR, _JSON, _GEOMETRY):
        return {_YEAR: "year", _JSON: "json", _GEOMETRY: "geometry"}[code]
    if code == _BIT:
        return f"bit({column.length})"
    return _derived_string(column)


def _derived_string(column: ResultColumn) -> str:
    if column.type_code in _BLOBS:
        return "longblob" if column.binary else "longtext"
    if column.binary:
        return f"varbinary({column.length})" if column.length <= 65532 else "longblob"
    characters = column.length // _BYTES_A_CHARACTER
    return f"varchar({characters})" if characters <= _WIDEST_VARCHAR else "longtext"


def postgres_type(mysql_type: str) -> str:
    """The type of PostgreSQL that reads the fields of a type of MySQL or MariaDB: the narrowest that has all values.

    Dates that PostgreSQL does not know (`0000-00-00`) are of no type but text.
    """
    kind, arguments, unsigned = _parts(mysql_type)
    if kind == "decimal":
        return f"numeric({arguments or '10,0'})"
    if kind == "bit":
        return f"bit({arguments or 1})"
    if kind in ("datetime", "timestamp"):
        return f"timestamp({arguments or 0})" + (" with time zone" if kind == "timestamp" else "")
    if kind in ("char", "varchar"):
        return f"varchar({arguments})" if arguments not in ("", "0") else "text"
    if _is_binary(kind):
        return "bytea"
    return _TO_POSTGRES.get(f"{kind} unsigned" if unsigned else kind) or _TO_POSTGRES.get(kind, "text")


def is_number(mysql_type: str) -> bool:
    """Whether the fields of a type are numbers: integers, decimals, reals, years."""
    return _parts(mysql_type)[0] in ("decimal", "year", *_INTEGERS.values(), *_REALS.values())


def is_real(mysql_type: str) -> bool:
    """Whether a type is float or double."""
    return _parts(mysql_type)[0] in _REALS.values()


def is_bits(mysql_type: str) -> bool:
    """Whether the fields of a type are binary digits."""
    return _parts(mysql_type)[0] == "bit"


def is_binary(mysql_type: str) -> bool:
    """Whether the fields of a type are hexadecimal digits."""
    return _is_binary(_parts(mysql_type)[0])


def _is_binary(kind: str) -> bool:
    return kind in ("binary", "varbinary", "vector") or kind.endswith("blob") or kind.startswith(_SPATIAL)


def _parts(text: str) -> tuple[str, str, bool]:
    """Name, arguments without spaces and `unsigned` of a type."""
    found = re.match(r"\s*(\w+)\s*(?:\(([^)]*)\))?(.*)", text.lower(), re.DOTALL)
    if found is None:
        return "", "", False
    name, arguments, rest = found[1], (found[2] or "").replace(" ", ""), found[3]
    return {"integer": "int", "numeric": "decimal"}.get(name, name), arguments, "unsigned" in rest
