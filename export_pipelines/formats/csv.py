"""CSV as PostgreSQL's COPY writes it: the server formats, we split records again to count and digest them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from xxhash import xxh3_64_intdigest

from export_pipelines.errors import IntegrityError
from export_pipelines.specs.table import CsvSpec
from export_pipelines.sql import quote_literal

EXTENSION = ".csv"


def copy_options(spec: CsvSpec) -> str:
    """The options of COPY … WITH (…) for this dialect."""
    return (
        f"FORMAT csv, DELIMITER {quote_literal(spec.delimiter)}, HEADER {str(spec.header).lower()}, "
        f"NULL {quote_literal(spec.null)}, QUOTE {quote_literal(spec.quote)}, ENCODING 'UTF8'"
    )


def records(raw: Iterable[bytes], spec: CsvSpec) -> Iterator[list[bytes]]:
    """Split raw bytes into records, each with its line end, in lists of some thousands; the header is one of them.

    A record ends at a newline outside of quotes: at one that has an even number of quotes before it.

    Raises:
        IntegrityError: the last record does not end.
    """
    quote = spec.quote.encode()
    begun: list[bytes] = []
    odd = False
    for piece in raw:
        *lines, rest = piece.split(b"\n")
        # Nearly always no newline stands in quotes; putting lines together again takes five times as long.
        even = quote not in piece or not any(line.count(quote) & 1 for line in lines)
        if even:
            if odd or not lines:
                begun.append(piece)
            else:
                lines[0] = b"".join([*begun, lines[0]])
                begun = [rest]
                yield [line + b"\n" for line in lines]
            odd ^= rest.count(quote) & 1 == 1
            continue
        joined, begun, odd = _join_quoted(begun, lines, rest, odd, quote)
        yield joined
    if b"".join(begun):
        raise IntegrityError("the last record of the CSV does not end in a newline")


def _join_quoted(
    begun: list[bytes], lines: list[bytes], rest: bytes, odd: bool, quote: bytes
) -> tuple[list[bytes], list[bytes], bool]:
    """Put lines together again that were cut inside quotes; also return what is still open, and whether in quotes."""
    joined: list[bytes] = []
    for line in lines:
        odd ^= line.count(quote) & 1 == 1
        begun.append(line + b"\n")
        if not odd:
            joined.append(b"".join(begun))
            begun = []
    return joined, [*begun, rest], odd ^ (rest.count(quote) & 1 == 1)


def digest_records(rows: Iterable[bytes]) -> int:
    """Sum of XXH3-64 of each record's bytes (with its line end), not yet reduced modulo 2**64."""
    return sum(map(xxh3_64_intdigest, rows))


def format_digest(total: int) -> str:
    """The row digest as manifests spell it: 16 hex digits."""
    return f"{total % (1 << 64):016x}"


def split_header(raw: Iterator[bytes], spec: CsvSpec) -> tuple[bytes, Iterator[bytes]]:
    """The header of raw bytes, with its line end, and what comes after it. A name in quotes may have line ends.

    Raises:
        IntegrityError: the header does not end.
    """
    quote = spec.quote.encode()
    head = b""
    for piece in raw:
        head += piece
        end = head.find(b"\n")
        while end >= 0:
            if head.count(quote, 0, end) % 2 == 0:
                return head[: end + 1], chain([head[end + 1 :]], raw)
            end = head.find(b"\n", end + 1)
    raise IntegrityError("the header of the CSV does not end in a newline")
