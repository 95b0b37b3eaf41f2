"""Whether the beginning of a file may be of its format: a source may answer 200 and tell of an error."""

from __future__ import annotations

import re
from collections.abc import Iterator

from export_pipelines.errors import SourceError

_HEAD = 512
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PK\x05\x06")
_HTML = re.compile(rb"\s*(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_EXCEPTION = re.compile(rb"<(?:\w+:)?(?:ExceptionReport|ServiceExceptionReport)\b")
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def sniffed(pieces: Iterator[bytes], expected: str, content_type: str, where: str) -> Iterator[bytes]:
    """The pieces, once their beginning was looked at. `expected` is a format, or empty if none is known.

    Raises:
        SourceError: it is a page of HTML, a report of an error, or cannot be of that format.
    """
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= _HEAD:
            break
    reason = _what_is_wrong(head, expected, content_type.partition(";")[0].strip().lower())
    if reason:
        start = head[:80].decode("utf-8", "replace").replace("\n", " ")
        raise SourceError(
            f"{where} answers with {reason} where {expected or 'a file'} is expected: {start!r}",
            hint="open the URL in a browser; the source may tell of an error",
            transient=True,
        )
    if head:
        yield head
    yield from pieces


def _what_is_wrong(head: bytes, expected: str, content_type: str) -> str:
    if _HTML.match(head) or content_type in ("text/html", "application/xhtml+xml"):
        return "a page of HTML"
    if head.startswith(_PACKED):
        # What is inside, its reader tells.
        return ""
    if expected == "parquet" and not head.startswith(b"PAR1"):
        return "something that is no Parquet"
    if expected == "excel":
        return "something that is no workbook"
    if _EXCEPTION.search(head):
        return "a report of an error"
    text = _plain(head)
    if expected in ("json", "jsonl") and text is not None and text[:1] not in (b"{", b"["):
        return "something that is no JSON" if text else "nothing"
    if expected == "gml" and text is not None and not text.startswith(b"<"):
        return "something that is no XML"
    if expected == "csv" and content_type in ("application/json", "application/problem+json"):
        return "JSON"
    return ""


def _plain(head: bytes) -> bytes | None:
    """The beginning without its mark and spaces; None of encodings whose signs are not bytes."""
    if head.startswith(_MARKS[1:]):
        return None
    return head.removeprefix(_MARKS[0]).lstrip(b" \t\r\n")
