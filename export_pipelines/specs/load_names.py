"""Names of the columns that loading adds to a table itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

OWN_COLUMNS = ("row_id", "file_id", "raw_id")
"""Loading's own in every table: `row_id` is what pages are read by."""

STYLE_COLUMNS = ("valid_from", "valid_to", "removed_at")
"""Loading's own in tables of style `history`, and of `snapshot` that marks; data in others."""


def refuse_reserved(names: Iterable[str], reserved: Sequence[str]) -> None:
    """Raises ValueError: one of the names is reserved in the style of the definition."""
    for name in names:
        if name in reserved:
            raise ValueError(f"a column cannot be named {name!r}: in this style loading adds {', '.join(reserved)}")
