"""Sizes as people write them: `10GB`."""

from __future__ import annotations

import re

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of `500`, `10GB` (powers of ten) or `10GiB` (powers of two).

    Raises:
        ValueError: it is no size, or zero.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match or (match[3] and not match[2]):
        raise ValueError(f"{text!r} is no size; write it as 10GB, 500 MB or 2GiB")
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2].lower()])
    if not size:
        raise ValueError(f"{text!r} leaves room for nothing")
    return size
