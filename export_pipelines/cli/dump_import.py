"""`dump --import`: tables made of the dumps of an older system, its dumps.yaml or its variables QUERY_FILE_<NAME>."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from export_pipelines.cli import output
from export_pipelines.errors import RequestError

DEFAULT_FOLDER = Path("assets") / "dumps"
FIRST_DAY = "2024-01-01"
"""Start of the first partition of what is imported: a Monday. Older files say nothing of it."""

_PREFIX = "QUERY_FILE_"
_KNOWN = ("query_file", "date_range", "batch_days", "output_dir", "description")
_STARTS = ("start", "start_date", "date_start", "from_date", "range_start", "window_start")
_ENDS = ("end", "end_date", "date_end", "to_date", "range_end", "window_end")
_MIDNIGHT = r"(?: 00:00(?::00(?:\.0+)?)?)?"
_NAMED = r"(?::(?P<colon>[A-Za-z_]\w*)|\{(?P<brace>[A-Za-z_]\w*)\}|%\((?P<percent>\w+)\)s)"
_TOKENS = re.compile(
    rf"(?P<whole>'{_NAMED}{_MIDNIGHT}')"
    r"|(?P<text>'(?:[^'\\]|''|\\.)*'|\"(?:[^\"\\]|\"\"|\\.)*\"|`[^`]*`|--[^\n]*|\#[^\n]*|/\*.*?\*/|::)"
    rf"|(?P<bare>{_NAMED.replace('?P<', '?P<b_')})"
    r"|(?P<mark>\?|%s)",
    re.DOTALL,
)
_INCLUDED = re.compile(r"(?:<=\s*|\bAND\s+)(?P<end>%\(window_end\)s)", re.IGNORECASE)
_INSIDE = re.compile(_NAMED.replace("?P<", "?P<i_"))


@dataclass
class Imported:
    """One dump: the files of its table, and what a person has to look at."""

    name: str
    files: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Why it cannot be imported."""
    notes: list[str] = field(default_factory=list)


def import_dumps(
    file: Path | None, environment: bool, into: Path | None, connection: str, *, dry_run: bool = False
) -> int:
    """Write a folder for each dump, and say what was not carried over. Nothing that exists is touched.

    Raises:
        RequestError: the file is none, nothing is in it, or there is no such connection.
    """
    from export_pipelines import settings

    root = settings.find_root()
    _check_connection(root, connection)
    found = [*(_of_file(file, connection) if file else ()), *(_of_environment(root, connection) if environment else ())]
    if not found:
        raise RequestError("there is nothing to import", hint="the file needs a mapping `dumps`; or set QUERY_FILE_…")
    target = root / (into or DEFAULT_FOLDER)
    for each in found:
        if (target / each.name).exists():
            each.problems.append(f"{target / each.name} exists already, and is left as it is")
        if not each.problems and not dry_run:
            _write(target / each.name, each)
        _tell(each, target / each.name, dry_run)
    return 1 if any(each.problems for each in found) else 0


def _check_connection(root: Path, name: str) -> None:
    """Raises RequestError: resources/ has no connection of that name."""
    from export_pipelines.components.project import load_project
    from export_pipelines.specs.documents import suggest

    found = load_project(root, automations=False).resources
    known = sorted(key for key, each in found.items() if type(each).__name__.endswith("ConnectionResource"))
    if name not in known:
        hint = suggest(name, known) or f"known are {', '.join(known) or 'none'}; --connection names one"
        raise RequestError(f"there is no connection {name!r} in resources/", hint=hint)


def _write(folder: Path, imported: Imported) -> None:
    folder.mkdir(parents=True)
    for name, text in imported.files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _tell(imported: Imported, folder: Path, dry_run: bool) -> None:
    if imported.problems:
        for problem in imported.problems:
            click.secho(f"error: {imported.name}: {problem}", err=True, fg="red")
    else:
        click.echo(f"{folder} {'would be' if dry_run else 'was'} written")
    for note in imported.notes:
        output.warn(f"{imported.name}: {note}")


def _of_file(file: Path, connection: str) -> Iterator[Imported]:
    import yaml

    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"{file} cannot be read: {str(error).splitlines()[0]}", hint="give a dumps.yaml") from None
    dumps = data.get("dumps") if isinstance(data, dict) else None
    if not isinstance(dumps, dict):
        raise RequestError(f"{file} has no mapping `dumps`", hint="dumps: {zm: {query_file: zm.sql, …}}")
    rest = sorted(map(str, data.keys() - {"dumps"}))
    for name, entry in dumps.items():
        made = made_of(str(name), entry if isinstance(entry, dict) else {}, file.parent, connection)
        if rest:
            made.notes.append(f"not carried over from {file.name}: {', '.join(rest)}")
            rest = []
        yield made


def _of_environment(root: Path, connection: str) -> Iterator[Imported]:
    from dotenv import dotenv_values

    variables = {**dotenv_values(root / ".env"), **os.environ}
    for name, value in sorted(variables.items()):
        if name.startswith(_PREFIX) and value:
            yield made_of(name.removeprefix(_PREFIX).lower(), {"query_file": value}, root, connection)


def made_of(name: str, entry: Mapping[str, Any], base: Path, connection: str) -> Imported:
    """The table of one dump. `query_file` is relative to `base`."""
    made = Imported(name)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        made.problems.append("its name cannot be that of a folder")
    query = _query(entry, base, made)
    converted, used = convert(query, made) if query else ("", set())
    ranged = _is_ranged(entry, used, made)
    lost = {key: value for key, value in entry.items() if key not in _KNOWN}
    made.notes += [f"not carried over: {key}: {value!r}" for key, value in lost.items()]
    days = entry.get("batch_days", 7)
    if not isinstance(days, int) or days < 1:
        made.problems.append(f"batch_days is {days!r}, and no number of days")
        days = 7
    if ranged and query:
        made.notes.append(
            f"batches of {output.count(days, 'day')} became partitions `{_cadence(days)}` from {FIRST_DAY} on, in UTC: "
            "set `start` to your first day, and `timezone` if your days begin elsewhere"
        )
    made.files = {"defs.yaml": _definition(entry, connection, ranged, days, lost), "select.sql": converted}
    return made


def _query(entry: Mapping[str, Any], base: Path, made: Imported) -> str:
    given = entry.get("query_file")
    if not isinstance(given, str) or not given:
        made.problems.append("query_file is missing")
        return ""
    try:
        text = (base / Path(given).expanduser()).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        made.problems.append(f"{given} cannot be read: {error}")
        return ""
    if not text.strip():
        made.problems.append(f"{given} is empty")
    return text


def _is_ranged(entry: Mapping[str, Any], used: set[str], made: Imported) -> bool:
    """Whether it takes a range, by its own word or by its query."""
    given = entry.get("date_range")
    if given not in (None, "required", "prohibited", "optional"):
        made.problems.append(f"date_range is {given!r}; it is required, optional or prohibited")
    ranged = bool(used) if given is None else given != "prohibited"
    if ranged and not used and not made.problems:
        made.problems.append("a range is wanted, and the query has no place for it: each batch would be everything")
    if not ranged and used:
        made.problems.append("a range is prohibited, and the query asks for one")
    return ranged


def convert(text: str, made: Imported) -> tuple[str, set[str]]:
    """The query with our parameters in the place of old ones, and which are used. What cannot be is a problem.

    Known are `:start_date`, `{start_date}`, `%(start)s` and the like, in quotes or not, and `?` or `%s` twice, in the
    order start, end. Comments, other texts and names in quotes stay as they are.
    """
    used: set[str] = set()
    marks = iter(["window_start", "window_end"])

    def ours(name: str) -> str | None:
        low = name.lower()
        return "window_start" if low in _STARTS else "window_end" if low in _ENDS else None

    def replaced(match: re.Match[str]) -> str:
        if match["text"] is not None:
            _look_inside(match["text"], ours, made)
            return match["text"]
        names = [match[key] for key in ("colon", "brace", "percent", "b_colon", "b_brace", "b_percent") if match[key]]
        found = ours(names[0]) if names else next(marks, None)
        if found is None and match["colon"]:
            # A text in quotes that begins with a colon.
            return match[0]
        if found is None:
            made.problems.append(f"{match[0]} stands for nothing that is known: there are start and end of the range")
            return match[0]
        used.add(found)
        return f"%({found})s"

    converted = _TOKENS.sub(replaced, text)
    for found in _INCLUDED.finditer(converted):
        line = converted.count("\n", 0, found.start("end")) + 1
        made.notes.append(
            f"select.sql:{line}: the end of a range is excluded here: write `< %(window_end)s`, not `<=` or BETWEEN"
        )
    return converted, used


def _look_inside(text: str, ours: Callable[[str], str | None], made: Imported) -> None:
    """A placeholder within a longer text in quotes has no counterpart."""
    if text.startswith(("--", "#", "/*", "`")):
        return
    for match in _INSIDE.finditer(text):
        if ours(next(filter(None, match.groups()))):
            made.problems.append(f"{text}: write the comparison with {match[0]} without other text in the quotes")


def _definition(entry: Mapping[str, Any], connection: str, ranged: bool, days: int, lost: Mapping[str, Any]) -> str:
    lines = [
        "# Imported from an older dumping system. select.sql lies beside this file; nothing is deleted.",
        *(f"# Not carried over: {key}: {_json(value)}" for key, value in lost.items()),
        "type: export_pipelines.ExportTable",
        "attributes:",
        f"  connection: {_json(connection)}",
    ]
    if entry.get("description"):
        lines.append(f"  description: {_json(str(entry['description']))}")
    if ranged:
        lines.append(
            f"  # A batch of {output.count(days, 'day')} that begins where a partition does is exported as that;"
        )
        lines.append("  # any other range is a dump beside them. Days are those of `timezone`: UTC, if none is given.")
        lines.append(f"  partitions: {{{_cadence(days)}, start: {FIRST_DAY}}}")
    dump = {"range": entry.get("date_range"), "batch_days": days if ranged else None}
    folder = entry.get("output_dir")
    if folder:
        dump["folder"] = _folder(str(folder))
    lines.append(f"  dump: {_json({key: value for key, value in dump.items() if value is not None})}")
    return "\n".join(lines) + "\n"


def _cadence(days: int) -> str:
    """How `partitions` says a number of days."""
    return {1: "every: day", 7: "every: week"}.get(days, f"every_days: {days}")


def _folder(text: str) -> Any:
    """A folder, or the variable that names it: `$NAME`, `${NAME}`."""
    match = re.fullmatch(r"\$(?:\{(\w+)\}|(\w+))", text.strip())
    if match:
        return {"env": match[1] or match[2]}
    path = Path(text).expanduser()  # as the old system read it, from where it was started
    return str(path if path.is_absolute() else path.absolute())


def _json(value: Any) -> str:
    """A value as YAML takes it, on one line."""
    return json.dumps(value, ensure_ascii=False, default=str).replace("\n", " ")
