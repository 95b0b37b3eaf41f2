"""Data sets that people make by uploading: each is a table to load, made from one definition and what they chose."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from export_pipelines.errors import RequestError
from export_pipelines.specs.load import LoadDefinition, LoadSpec
from export_pipelines.specs.load_names import OWN_COLUMNS, STYLE_COLUMNS
from export_pipelines.specs.load_sources import UploadSource

TYPES = ("text", "boolean", "bigint", "numeric", "date", "timestamp", "timestamptz")
"""Types that a column may be given."""

_DATA_SET = re.compile(r"[a-z][a-z0-9_]{0,20}")

Columns = Sequence[tuple[str, str, str]]
"""Name, name in the file, and type of each column."""


def upload_source(area: LoadDefinition) -> UploadSource:
    """The source of a definition that takes uploads."""
    assert isinstance(area.spec.source, UploadSource)
    return area.spec.source


def area_ids(area: LoadDefinition) -> tuple[str, str]:
    """Under which its uploads are noted: its id, and the one that it had before it was moved."""
    return area.id, area.landed_as


def upload_definition(
    area: LoadDefinition, organisation: str, dataset: str, columns: Columns = (), delimiter: str = ""
) -> LoadDefinition:
    """The table of a data set: `<table>_<organisation>_<data set>`, for a file with this delimiter, or the area's.

    Raises:
        RequestError: a name or a type is not possible.
    """
    if organisation not in upload_source(area).organisations:
        raise RequestError(f"there is no organisation {organisation[:40]!r} here")
    if not _DATA_SET.fullmatch(dataset):
        hint = "lower-case letters, digits and _, beginning with a letter, 21 at most"
        raise RequestError(f"a data set cannot be named {dataset[:40]!r}", hint=hint)
    if wrong := sorted({kind for _, _, kind in columns} - {*TYPES}):
        raise RequestError(f"there is no type {wrong[0][:40]!r} here", hint=f"one of {', '.join(TYPES)}")
    spec: dict[str, Any] = area.spec.model_dump()
    spec["target"]["table"] = f"{area.spec.target.table}_{organisation}_{dataset}"
    spec["file"]["format"] = "csv"
    if area.spec.moved_from:
        spec["moved_from"] = f"{area.spec.moved_from}/{organisation}_{dataset}"
    spec["file"]["delimiter"] = delimiter or area.spec.file.delimiter
    spec["columns"] = {name: {"source": source, "type": kind} for name, source, kind in columns}
    try:
        made = LoadSpec.model_validate(spec)
    except ValidationError as error:
        raise RequestError(f"this data set is not possible: {error.errors()[0]['msg']}") from error
    update = {"name": f"{organisation}_{dataset}", "group": area.id, "spec": made}
    return area.model_copy(update={**update, "version": upload_version(area.version, columns, delimiter)})


def upload_version(area_version: str, columns: Columns, delimiter: str = "") -> str:
    """Version of the definition of a data set."""
    own = json.dumps([list(each) for each in columns]) + delimiter
    return hashlib.sha256(f"{area_version} {own}".encode()).hexdigest()


def column_names(header: Iterable[str]) -> list[str]:
    """Names of columns for those of a file: plain, letters without their marks, none that loading adds itself in any
    style, none twice."""
    found: list[str] = []
    for each in header:
        letters = re.sub(r"[\u0300-\u036f]", "", unicodedata.normalize("NFKD", each.casefold()))
        plain = re.sub(r"[^a-z0-9_]+", "_", letters).strip("_")[:50] or "column"
        plain = f"c_{plain}" if plain[0].isdigit() or plain in (*OWN_COLUMNS, *STYLE_COLUMNS) else plain
        number, name = 1, plain
        while name in found:
            number, name = number + 1, f"{plain}_{number + 1}"
        found.append(name)
    return found
