"""Text of any encoding as UTF-8, without its byte order mark."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from itertools import chain

from export_pipelines.errors import IntegrityError, RequestError

# The marks of UTF-32 begin like those of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LONGEST = 4


def is_utf8(encoding: str) -> bool:
    """Whether a name is one of UTF-8. Raises RequestError for an unknown one."""
    try:
        return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii")
    except LookupError as error:
        raise RequestError(f"there is no encoding {encoding!r}", hint="utf-8, latin-1, cp1257, utf-16 …") from error


def without_mark(pieces: Iterator[bytes], encoding: str) -> tuple[Iterator[bytes], str]:
    """The pieces without their mark, and the encoding that it tells, or else the one that is given."""
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= _LONGEST:
            break
    for mark, found in _MARKS:
        if head.startswith(mark):
            return chain([head[len(mark) :]], pieces), found
    return chain([head], pieces), encoding


def utf8(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """The text as UTF-8, whatever its encoding. What claims to be UTF-8 comes as it is, good or bad.

    Raises:
        IntegrityError: it is not of its (other) encoding; with the line.
    """
    pieces, encoding = without_mark(pieces, encoding)
    if is_utf8(encoding):
        yield from pieces
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    for piece in chain(pieces, [None]):
        try:
            text = decoder.decode(piece or b"", final=piece is None)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            raise IntegrityError(
                f"the text is not {encoding}, about line {line}: {error.reason}", hint="correct `encoding`"
            ) from error
        line += text.count("\n")
        if text:
            yield text.encode("utf-8", "replace")
