"""Two commands of the MySQL protocol that PyMySQL does not offer: to describe a query without running it, and to read
its rows as bytes, many at a time.

PyMySQL makes a packet object and a tuple of each row, some 10 µs; here a row costs about 1 µs, which is why a file can
be written as fast as the server gives its rows. Both sit on PyMySQL's own connection: how it connects, authenticates
and encrypts is its affair. Source: MySQL's documentation of the client/server protocol ("Text Resultset",
"COM_STMT_PREPARE"), which MariaDB's agrees with.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from export_pipelines.sources.mysql_types import ResultColumn

_QUERY = 0x03
_STMT_PREPARE = 0x16
_STMT_CLOSE = 0x19
_CHUNK = 1 << 18
_LARGEST = 0xFFFFFF
_LOST = 2013

Columns = list[list[bytes]]
"""Some rows, as a list of values for each column."""


class NullInRow(Exception):
    """A column that is never NULL was: the server could not make its text."""


def describe(connection: Any, query: str) -> list[ResultColumn]:
    """The columns that a query gives. The server parses and prepares it; nothing is run."""
    from pymysql.protocol import FieldDescriptorPacket

    connection._execute_command(_STMT_PREPARE, query)
    head = connection._read_packet().get_all_data()
    statement, columns, parameters = struct.unpack_from("<IHH", head, 1)
    if parameters:
        for _ in range(parameters + 1):
            connection._read_packet()
    found = [_column(connection._read_packet(FieldDescriptorPacket)) for _ in range(columns)]
    if columns:
        connection._read_packet()
    connection._execute_command(_STMT_CLOSE, struct.pack("<I", statement))
    return found


def _column(packet: Any) -> ResultColumn:
    return ResultColumn(
        name=packet.name,
        type_code=packet.type_code,
        charset=packet.charsetnr,
        flags=packet.flags,
        length=packet.length,
        decimals=packet.scale,
        database=packet.db.decode() if isinstance(packet.db, bytes) else packet.db,
        org_table=packet.org_table,
        org_name=packet.org_name,
    )


def rows(connection: Any, query: str) -> Iterator[Columns]:
    """Run a query and give its rows, some thousands at a time. Memory: a quarter of a mebibyte, and one row.

    The connection is of no use until the last list was given; one that is given up in the middle must be closed.

    Raises:
        pymysql.Error: the server refused or was lost. NullInRow: a value is NULL.
    """
    connection._execute_command(_QUERY, query)
    columns = connection._read_packet().read_length_encoded_integer()
    for _ in range(columns + 1):
        connection._read_packet()
    more = connection._rfile.read1
    rest, behind = b"", False
    while True:
        # Behind a large row the end may have come already: nothing else would.
        data = b"" if behind else more(_CHUNK)
        if not data and not behind:
            raise _lost()
        behind = False
        buffer = rest + data if rest else data
        found, used, over = _split(buffer, columns)
        rest = buffer[used:]
        if found[-1]:
            yield found
        if over:
            return
        if len(rest) >= _LARGEST + 4 and int.from_bytes(rest[:3], "little") == _LARGEST:
            found, rest = _large(rest, more, columns)
            behind = True
            yield found


def _split(buffer: bytes, columns: int) -> tuple[Columns, int, bool]:
    """The whole rows at the beginning of some bytes, how many bytes they are, and whether the result ends there."""
    found: Columns = [[] for _ in range(columns)]
    *before, last = (values.append for values in found)
    at, end = 0, len(buffer)
    while at + 4 < end:
        size = buffer[at] | buffer[at + 1] << 8 | buffer[at + 2] << 16
        place = at + 4
        stop = place + size
        if stop > end or size == _LARGEST:
            break
        first = buffer[place]
        if first >= 0xFE and (first == 0xFF or size < 9):
            if first == 0xFF:
                raise _error(buffer[place:stop])
            return found, stop, True
        for append in before:
            length = buffer[place]
            if length > 250:
                length, place = _length(buffer, place)
            else:
                place += 1
            append(buffer[place : place + length])
            place += length
        # The last value goes to the end of the packet.
        place = place + 1 if buffer[place] < 251 else _length(buffer, place)[1]
        last(buffer[place:stop])
        at = stop
    return found, at, False


def _length(buffer: bytes, at: int) -> tuple[int, int]:
    """A length-encoded integer of more than 250, and where it ends."""
    first = buffer[at]
    if first == 0xFB:
        raise NullInRow
    size = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(first, 0)
    if not size:
        return first, at + 1
    return int.from_bytes(buffer[at + 1 : at + 1 + size], "little"), at + 1 + size


def _large(rest: bytes, more: Any, columns: int) -> tuple[Columns, bytes]:
    """A row of 16 MiB and more, which comes in several packets; and the bytes behind it."""
    parts: list[bytes] = []
    buffer = bytearray(rest)
    while True:
        while len(buffer) < 4 or len(buffer) < 4 + int.from_bytes(buffer[:3], "little"):
            data = more(1 << 20)
            if not data:
                raise _lost()
            buffer += data
        size = int.from_bytes(buffer[:3], "little")
        parts.append(bytes(buffer[4 : 4 + size]))
        del buffer[: 4 + size]
        if size < _LARGEST:
            break
    whole, place = b"".join(parts), 0
    found: Columns = []
    for _ in range(columns):
        length, place = _length(whole, place)
        found.append([whole[place : place + length]])
        place += length
    return found, bytes(buffer)


def _error(packet: bytes) -> Exception:
    """The driver's error for an error packet in the middle of a result."""
    from pymysql.err import MySQLError, raise_mysql_exception

    try:
        raise_mysql_exception(packet)
    except MySQLError as error:
        found: Exception = error
    return found


def _lost() -> Exception:
    from pymysql.err import OperationalError

    found: Exception = OperationalError(_LOST, "Lost connection to MySQL server during query")
    return found
