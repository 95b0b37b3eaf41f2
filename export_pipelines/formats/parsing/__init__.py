"""Files of others, taken apart: CSV, JSON, JSON Lines, Parquet, Excel and GML, packed or not.

What comes is hostile until it is read: sizes are bounded, a bomb is noticed while it unpacks, and a record that cannot
be taken apart is told with its line instead of being guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.formats.parsing.base import BadRecord as BadRecord  # part of what this offers
from export_pipelines.formats.parsing.base import Batch as Batch  # part of what this offers
from export_pipelines.formats.parsing.base import Batches, Open
from export_pipelines.formats.parsing.base import NotPlain as NotPlain  # part of what this offers
from export_pipelines.formats.parsing.base import Parsed as Parsed  # part of what this offers
from export_pipelines.formats.parsing.base import other_delimiter as other_delimiter  # part of what this offers
from export_pipelines.formats.parsing.unpacking import Member, bare_name, members
from export_pipelines.specs.load import FileSpec

_EXTENSIONS = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt"), "csv"),
    **dict.fromkeys((".json", ".geojson"), "json"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".xlsx", ".xlsm"), "excel"),
    **dict.fromkeys((".gml", ".xml"), "gml"),
}
_Parser = Callable[[FileSpec, Sequence[str] | None, Member], Parsed]


def parse(
    spec: FileSpec, columns: Sequence[str] | None, open_stream: Open, name: str, *, pages: bool = False
) -> Parsed:
    """Begin to read a file: its header is read before this returns.

    Args:
        spec: what the file holds.
        columns: names that the definition wants of the file: of JSON these are keys or JMESPaths, of CSV without header
            they are all columns in order. None: all that the file has.
        open_stream: opens the file as it is stored; may be called more than once.
        name: of the file, whose end tells format and compression where the definition does not.
        pages: whether the file is what `pages.page_line` made of an API's replies.

    Raises:
        IntegrityError: the file is damaged, or not of its format; with line and column where that is known.
        RequestError: it is beyond a limit of the definition, or lacks what the definition names.
    """
    if pages:
        from export_pipelines.formats.parsing.pages import as_pages, parse_pages

        spec = as_pages(spec)
        return parse_pages(spec, columns, members(spec, open_stream, name)[0])
    found = members(spec, open_stream, name)
    if len(found) == 1:
        return _parse(spec, columns, found[0])
    return _together(spec, columns, found)


def _parse(spec: FileSpec, columns: Sequence[str] | None, member: Member) -> Parsed:
    return _parser(spec.format, member.name)(spec, columns, member)


def _parser(format_name: str, name: str) -> _Parser:
    if format_name == "auto":
        format_name = _by_name(name)
    match format_name:
        case "csv":
            from export_pipelines.formats.parsing.csv import parse_csv as parser
        case "json":
            from export_pipelines.formats.parsing.json import parse_json as parser
        case "jsonl":
            from export_pipelines.formats.parsing.json import parse_jsonl as parser
        case "parquet":
            from export_pipelines.formats.parsing.parquet import parse_parquet as parser
        case "excel":
            from export_pipelines.formats.parsing.excel import parse_excel as parser
        case _:
            from export_pipelines.formats.parsing.gml import parse_gml as parser
    return parser


def _by_name(name: str) -> str:
    for extension, format_name in _EXTENSIONS.items():
        if name.lower().endswith(extension):
            return format_name
    raise RequestError(
        f"the name {name!r} does not tell what the file is", hint="write `file: {format: csv}`, or json, excel …"
    )


def format_of(spec: FileSpec, name: str) -> str:
    """The format of a file by its definition or else its name; empty if neither tells."""
    if spec.format != "auto":
        return spec.format
    try:
        return _by_name(bare_name(name))
    except RequestError:
        return ""


def _together(spec: FileSpec, columns: Sequence[str] | None, found: list[Member]) -> Parsed:
    """Several files as one, one after the other. They must have the same columns."""
    if columns is None:
        columns = _all_columns(spec, found)
    parsed = [_parse(spec, columns, found[0])]
    names = parsed[0].columns

    def batches() -> Batches:
        yield from parsed[0].batches
        for member in found[1:]:
            next_one = _parse(spec, columns, member)
            if next_one.columns != names:
                raise IntegrityError(
                    f"{member.name!r} has other columns than {found[0].name!r}: {_difference(names, next_one.columns)}"
                )
            yield from next_one.batches

    return Parsed(names, batches())


def _all_columns(spec: FileSpec, found: list[Member]) -> Sequence[str] | None:
    """Of files whose records have names of their own: those of all of them."""
    kinds = {_by_name(member.name) if spec.format == "auto" else spec.format for member in found}
    if not kinds & {"json", "jsonl", "gml"}:
        return None
    return tuple(dict.fromkeys(name for member in found for name in _names(spec, member)))


def _names(spec: FileSpec, member: Member) -> Iterator[str]:
    yield from _parse(spec, None, member).columns


def _difference(left: Sequence[str], right: Sequence[str]) -> str:
    missing, added = [n for n in left if n not in right], [n for n in right if n not in left]
    if not missing and not added:
        return "they are in another order"
    return "; ".join([f"it lacks {missing[:5]}"] * bool(missing) + [f"it adds {added[:5]}"] * bool(added))
