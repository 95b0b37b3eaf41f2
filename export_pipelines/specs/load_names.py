"""Names of the columns that loading adds to a table itself."""

from __future__ import annotations

OWN_COLUMNS = ("row_id", "file_id", "raw_id")
"""Loading's own in every table: `row_id` is what pages are read by."""

STYLE_COLUMNS = ("valid_from", "valid_to", "removed_at")
"""Loading's own in tables of style `history`, and of `snapshot` that marks; data in others."""
