"""Files of others, taken apart: CSV, JSON, JSON Lines, Parquet, Excel and GML, packed or not.

What comes is hostile until it is read: sizes are bounded, a bomb is noticed while it unpacks, and a record that cannot
be taken apart is told with its line instead of being guessed at.
"""

from __future__ import annotations

from collections.abc import Sequence

from export_pipelines.formats.parsing.base import BadRecord as BadRecord  # part of what this offers
from export_pipelines.formats.parsing.base import Batch as Batch  # part of what this offers
from export_pipelines.formats.parsing.base import Open, Parsed
from export_pipelines.specs.load import FileSpec


def parse(spec: FileSpec, columns: Sequence[str] | None, open_stream: Open, name: str) -> Parsed:
    """Begin to read a file: its header is read before this returns.

    Args:
        spec: what the file holds.
        columns: names that the definition wants of the file: of JSON these are JMESPaths, of CSV without header they
            are all columns in order. None: all that the file has.
        open_stream: opens the file as it is stored; may be called more than once.
        name: of the file, whose end tells format and compression where the definition does not.

    Raises:
        IntegrityError: the file is damaged, or not of its format; with line and column where that is known.
        RequestError: it is beyond a limit of the definition, or lacks what the definition names.
    """
    raise NotImplementedError
