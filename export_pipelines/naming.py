"""Names of files, folders and Dagster's objects, all derived from a table's id and a partition's key.

Every mapping here is one-to-one (`group_name` alone is not), so two tables or partitions never share a name. Tables
whose ids differ by case or Unicode normalisation only are refused by the loader, since some file systems mix them up.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from export_pipelines.specs.table import TableDefinition
from export_pipelines.windows import SNAPSHOT, Window

MAX_PART = 200
"""Bytes of UTF-8 in one part of a path, which leaves room for extensions and temporary names below NAME_MAX (255)."""

FIELDS = ("group", "table", "partition", "window_start", "window_end", "generation")
"""What a file name template may use."""

_TIMES = ("window_start", "window_end")
_DEFAULT_TIME = "%Y-%m-%d-%H_%M"
_DIRECTIVE = re.compile(r"%(.?)")
# Those that every platform knows and whose text does not depend on the locale's taste for slashes.
_DIRECTIVES = frozenset("aAbBdfFGHIjmMpRSTuUVwWyYzZ%")
AGE = ".age"
"""Extension of an encrypted file."""


def safe(part: str) -> str:
    """Any string as one part of a path: letters and digits of all scripts, `-`, `_` and `.` stay, the rest is
    percent-encoded as UTF-8. Never empty, never with a dot at either end, at most MAX_PART bytes (what is longer is
    cut and ends in `%_` and a hash). One-to-one, also on file systems that normalise Unicode."""
    if not part:
        return "%_"
    kept = _kept(part)
    return _shorten("".join(c if keep else _percent(c) for c, keep in zip(part, kept, strict=True)), part)


def _kept(part: str) -> list[bool]:
    """Which characters stay. Outside NFC nothing beyond ASCII does, and a combining mark only behind what stays, or a
    file system that normalises would join two names."""
    composed = unicodedata.is_normalized("NFC", part)
    kept: list[bool] = []
    for index, character in enumerate(part):
        category = unicodedata.category(character)[0]
        if character.isascii():
            kept.append(character.isalnum() or character in "-_" or (character == "." and 0 < index < len(part) - 1))
        elif category == "M":
            kept.append(composed and index > 0 and kept[-1])
        else:
            kept.append(composed and category in "LN")
    return kept


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _shorten(encoded: str, original: str) -> str:
    """Cut at MAX_PART bytes, between characters and not within `%XX`. `%_` is never the result of encoding."""
    data = encoded.encode()
    if len(data) <= MAX_PART:
        return encoded
    digest = hashlib.sha256(original.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    head = data[: MAX_PART - len(digest) - 2].decode(errors="ignore")
    return re.sub(r"%[0-9A-F]?$", "", head) + "%_" + digest


def fold(text: str) -> str:
    """What names are compared by where case and normalisation must not matter."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def table_folder(table_id: str) -> str:
    """Folder of a table in the archive: each part of the id made safe."""
    return "/".join(safe(part) for part in table_id.split("/"))


def archive_folder(table: TableDefinition, window: Window) -> str:
    """Folder of a partition in the archive, within the table's."""
    return f"{table_folder(table.id)}/{safe(window.partition)}"


def extension(table: TableDefinition) -> str:
    """Extension of the table's files, e.g. `.csv.gz`, or `.csv.gz.age` if they are encrypted."""
    encrypted = AGE if table.spec.encryption else ""
    return f"{table.spec.format.extension}{table.spec.packing.extension}{encrypted}"


def file_key(table: TableDefinition, window: Window, generation: int) -> str:
    """Key of an export in its store: the template filled in, and the extension.

    A later generation gets the suffix `-gN`, unless the template has `{generation}`. The template must have passed
    `template_problems`, as those of loaded tables have.
    """
    template = table.spec.file_name
    filled = "".join(
        literal + (_value(table, window, generation, field, spec) if field else "")
        for literal, field, spec, _ in string.Formatter().parse(template)
    )
    if generation > 1 and "generation" not in _fields(template):
        filled += f"-g{generation}"
    return "/".join(_shorten(part, part) for part in filled.split("/")) + extension(table)


def _value(table: TableDefinition, window: Window, generation: int, field: str, spec: str | None) -> str:
    match field:
        case "group":
            return table_folder(table.group)
        case "table":
            return safe(table.name)
        case "partition":
            return safe(window.partition)
        case "generation":
            return str(generation)
    moment = window.start if field == "window_start" else window.end
    if moment is None:
        return SNAPSHOT
    zone = table.spec.partitions.timezone if table.spec.partitions else "UTC"
    return _time(moment.astimezone(ZoneInfo(zone)), spec or _DEFAULT_TIME)


def _time(moment: datetime, fmt: str) -> str:
    """The time as the template wants it; a slash in the format makes a folder. In the second of two equal hours the
    offset is added, or two partitions would share a name."""
    ambiguous = moment.fold and re.search("%[HIRT]", fmt) and "%z" not in fmt
    text = moment.strftime(fmt) + (moment.strftime("%z") if ambiguous else "")
    return "/".join(safe(part) for part in text.split("/"))


def _fields(template: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(template) if field}


def template_problems(template: str, *, partitioned: bool) -> list[str]:
    """What is wrong with a file name template; empty when nothing is."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        return [f"the template {template!r} cannot be read: {error}"]
    found = [text for part in parsed for text in _field_problems(*part[1:], partitioned)]
    shape = "".join(literal + ("" if field is None else f"<{spec or ''}>") for literal, field, spec, _ in parsed)
    found += _shape_problems(template, shape)
    if partitioned and not found and not _fields(template) & {"partition", *_TIMES}:
        found.append("all partitions would have the same name; use {partition}, {window_start:…} or {window_end:…}")
    return found


def _field_problems(field: str | None, spec: str | None, conversion: str | None, partitioned: bool) -> list[str]:
    if field is None:
        return []
    if field not in FIELDS:
        return [f"unknown field {{{field}}}; known are {', '.join(FIELDS)}"]
    if conversion:
        return [f"{{{field}!{conversion}}}: conversions are not supported"]
    if field not in _TIMES:
        return [f"{{{field}:{spec}}}: only window_start and window_end take a format"] if spec else []
    if not partitioned:
        return [f"{{{field}}} has no value: the table has no partitions"]
    unknown = [d.group(0) for d in _DIRECTIVE.finditer(spec or "") if d.group(1) not in _DIRECTIVES or not d.group(1)]
    return [f"{{{field}:{spec}}}: {' '.join(unknown)} cannot be used in a file name"] if unknown else []


def _shape_problems(template: str, shape: str) -> list[str]:
    if template.startswith("/"):
        return [f"{template!r} is an absolute path; names are relative to the store"]
    parts = re.sub(r"<[^>]*>", lambda found: re.sub("[^/]+", "x", found.group(0)), shape).split("/")
    if any(part == ".." for part in parts):
        return [f"{template!r} leaves the store by '..'"]
    if any(not part or part.startswith(".") for part in parts):
        return [f"{template!r} has an empty part, or one that starts with a dot"]
    if any(unicodedata.category(c)[0] == "C" or c == "\\" for c in shape):
        return [f"{template!r} has a control character or a backslash"]
    return []


def file_pattern(table: TableDefinition) -> str:
    """The names of all files of a table, its own fields filled in: two tables with equal patterns would collide."""
    return "".join(
        literal
        + {"group": table_folder(table.group), "table": safe(table.name)}.get(f or "", f"{{{f}:{s}}}" if f else "")
        for literal, f, s, _ in string.Formatter().parse(table.spec.file_name)
    ) + extension(table)


def _escape(text: str, allowed: str, *, joined: bool) -> str:
    """Write all but ASCII letters, digits, `_` and `allowed` as `_x<code point>_`, one-to-one.

    An underscore that could be taken for part of an escape, or with `joined` of the separator `__`, is escaped too.
    """
    plain = f"A-Za-z0-9{re.escape(allowed)}"
    doubtful = rf"_(?=x[0-9a-f]*(?:[^{plain}]|$))"
    if joined:
        doubtful += rf"|(?<![{plain}])_|_(?![{plain}])"
    return re.sub(rf"{doubtful}|[^{plain}_]", lambda found: f"_x{ord(found.group(0)):x}_", text)


def asset_key(table_id: str, step: str) -> list[str]:
    """Dagster's asset key of a step of a table: the parts of the id, the step behind the last, since a lineage graph
    shows that one only: `shop/orders_export`. Parts have ASCII letters, digits, `_`, `-` and `.` only, from which
    Dagster can make the names of ops and outputs."""
    *groups, name = (_escape(part, ".-", joined=False) for part in table_id.split("/"))
    return [*groups, f"{name}_{step}"]


def step_of(key: Sequence[str]) -> str:
    """The step that an asset key of a table is of."""
    return key[-1].rpartition("_")[2]


def dagster_name(table_id: str) -> str:
    """A name for jobs and ops, `[A-Za-z0-9_]+`: the parts of the id joined by `__`. Never one of Dagster's reserved
    words for an id that has a group."""
    return "__".join(_escape(part, "", joined=True) for part in table_id.split("/"))


def group_name(group: str) -> str:
    """Dagster's group for a table's: folders stay, what is not a letter or digit becomes `_`. Not one-to-one: groups
    `a-b` and `a_b` are shown as one."""
    return "/".join(
        re.sub(r"\W", "_", part) if part.isascii() else _escape(part, "", joined=False) for part in group.split("/")
    )


def pool_name(text: str) -> str:
    """A name for a concurrency pool, which may have no white space."""
    return re.sub(r"[\s%]", lambda found: "".join(f"%{b:02X}" for b in found.group(0).encode()), text)
