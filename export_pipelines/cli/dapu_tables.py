"""From tasks of dapu to folders of ours: tables to load and transforms, and what is not carried over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from export_pipelines.cli.dapu_sources import (
    Pull,
    database_pull,
    excel_pull,
    file_pull,
    left_over,
    rest_pull,
    take_json,
)
from export_pipelines.cli.dapu_tree import TASK_FILE, Task, Tree, files_of, filled, texts

_PULLS = ("export", "pull", "import", "stream")
_HOOKS = ("before", "update", "hash_before", "hash_after", "afternew", "afterold", "after")
_WINDOWS = {"morning": "morning", "workhours": "working_hours", "evening": "evening"}
_SPECIAL = ("serial", "bigserial", "smallserial")
_TASK_KEYS = ("status", "run", "depends", "actions", "name", "title", "description", "remarks")


@dataclass
class Made:
    """A folder of ours."""

    folder: Path
    kind: str
    attributes: dict[str, Any]
    sql: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[Path, str]:
        """Path and text of each file."""
        document = {"type": f"export_pipelines.{self.kind}", "attributes": self.attributes}
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
        return {
            self.folder / "defs.yaml": text,
            **{self.folder / name: f"{sql.strip()}\n" for name, sql in self.sql.items()},
        }


@dataclass
class Converted:
    """A task, as far as it is carried over."""

    task: Task
    made: list[Made] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    connections: list[str] = field(default_factory=list)


class Converter:
    """Converts the tasks of a tree into folders below `into`, a folder below assets/."""

    def __init__(self, tree: Tree, root: Path, into: Path, timezone: str) -> None:
        self._tree, self._into, self._timezone = tree, into, timezone
        group = into.relative_to(root / "assets").as_posix()
        self._prefix = "" if group == "." else f"{group}/"
        self._last: dict[str, str] = {}

    def all(self) -> list[Converted]:
        """All tasks. What a task waits for is the last folder of each."""
        found = [_Conversion(self._tree, task, self._into, self._prefix).done() for task in self._tree.tasks.values()]
        last = {each.task.id: self._id(each.made[-1]) for each in found if each.made}
        for each in found:
            if each.made:
                self._when(each, last)
        return found

    def _id(self, made: Made) -> str:
        return self._prefix + made.folder.relative_to(self._into).as_posix()

    def _when(self, converted: Converted, last: Mapping[str, str]) -> None:
        """When the first folder of a task runs, and that the others follow it."""
        task, first = converted.task, converted.made[0]
        before: list[str] = []
        for name in texts(task.spec.get("depends")):
            if known := last.get(name.lower()):
                before.append(known)
            else:
                converted.notes.append(f"`depends: {name}` is not carried over: there is no such table")
        run = task.spec.get("run")
        _clock(first, run if isinstance(run, dict) else {}, bool(before), self._timezone, converted.notes)
        for number, made in enumerate(converted.made):
            names = before if number == 0 else [self._id(converted.made[number - 1])]
            if names:
                made.attributes["depends"] = names
            if made.kind == "LoadTable" and number:
                made.attributes["keep_pause"] = "0 minutes"
            made.attributes["route"] = task.route.code


def _clock(made: Made, run: Mapping[str, Any], depends: bool, timezone: str, notes: list[str]) -> None:
    pause = _pause(str(run.get("keep_pause") or "23 hours"), notes)
    windows = [ours for theirs, ours in _WINDOWS.items() if _is_true(run.get(theirs, not depends))]
    if made.kind == "Transform" and not depends:
        # Nothing else starts it; the pause says how often.
        made.attributes["cron"] = "*/30 * * * *"
    if made.kind == "LoadTable" or not depends:
        made.attributes["keep_pause"] = pause
    if depends and not windows and made.kind == "LoadTable":
        notes.append("dapu starts it only after what it depends on; here it is also pulled after each `keep_pause`")
    if windows and len(windows) < len(_WINDOWS):
        made.attributes["day"] = {"windows": windows, "timezone": timezone}
    priority = run.get("priority", 3)
    if isinstance(priority, int) and priority != 3:
        # Theirs counts from 1, the most urgent; of Dagster's the greater one wins.
        made.attributes["priority"] = 3 - priority
    left_over(run, ("keep_pause", "priority", *_WINDOWS), notes.append, "run")


def _is_true(value: Any) -> bool:
    return value if isinstance(value, bool) else str(value).lower() in ("true", "yes", "y", "on", "1", "jah")


def _pause(text: str, notes: list[str]) -> str:
    found = re.fullmatch(r"\s*(\d{1,4})\s*(minute|min|hour|day|week|month)s?\s*", text.lower())
    if not found:
        notes.append(f"`keep_pause: {text}` is not understood: 23 hours")
        return "23 hours"
    number, unit = int(found[1]), found[2]
    days = {"week": 7, "month": 30}.get(unit)
    return f"{number * days} days" if days else f"{number} {'minute' if unit == 'min' else unit}s"


class _Conversion:
    """Of one task."""

    def __init__(self, tree: Tree, task: Task, into: Path, prefix: str) -> None:
        self._tree, self._task, self._into, self._prefix = tree, task, into, prefix
        self._found = Converted(task)
        self._note = self._found.notes.append
        self._fetched: Pull | None = None

    def done(self) -> Converted:
        spec = self._task.spec
        left_over(spec, _TASK_KEYS, self._note, TASK_FILE)
        if (status := str(spec.get("status") or "active")) != "active":
            self._note(f"its status is {status!r}: it is left out")
            return self._found
        if not self._task.actions:
            self._note("it has no actions: it is left out")
        for action in self._task.actions:
            try:
                self._act(str(action.get("do") or "").lower(), action)
            except (ValueError, TypeError, KeyError, AttributeError, LookupError) as error:
                why = str(error) if type(error) is ValueError else "it is not written as expected"
                self._note(f"action `{action.get('do')}` is not carried over: {why}")
        if self._fetched is not None:
            self._note("what it fetches is loaded by those tasks that read it, or by none: see `json` and `excel`")
        self._versions()
        return self._found

    def _act(self, kind: str, action: Mapping[str, Any]) -> None:
        if kind in _PULLS:
            self._load(database_pull(self._tree, self._task, action, self._note))
        elif kind == "runsql":
            self._runsql(action)
        elif kind == "shadow":
            self._shadow(action)
        elif kind == "history":
            self._history(action)
        elif kind in ("excel", "exceltartu"):
            self._load(excel_pull(self._tree, self._task, action, self._note))
        elif kind in ("restapi", "rest", "wfs"):
            self._fetched = rest_pull(self._task, action, self._note)
            if self._fetched.source["type"] == "wfs":
                self._load(self._fetched)
                self._fetched = None
        elif kind == "filecopy":
            self._fetched = file_pull(self._task, action.get("origin") or {})
            if self._fetched is None:
                raise ValueError("its origin is no file of the machine")
        elif kind == "json":
            self._json(action)
        else:
            raise ValueError("there is nothing like it here")

    def _folder(self, suffix: str = "") -> Path:
        base = self._into / self._task.route.code / self._task.schema
        taken = {each.folder.name for each in self._found.made}
        name, number = self._task.table + suffix, 2
        while name in taken:
            name, number = f"{self._task.table}{suffix or '_load'}_{number}", number + 1
        return base / name

    def _target(self) -> str:
        return f"{self._task.schema}.{self._task.table}"

    def _load(self, pull: Pull) -> None:
        style = pull.style or ({"style": "upsert", "key": pull.key} if pull.key else {})
        if not style and pull.source["type"] == "database" and pull.source.get("mode") != "incremental":
            style = {"style": "replace"}
            pull.source.pop("mode", None)
            self._note("without key columns it is loaded by style `replace`: each pull is the whole table")
        if style.get("style") == "upsert" and pull.source.get("mode") is None and pull.source["type"] == "database":
            pull.source["mode"] = "changes"
        attributes = {
            "source": pull.source,
            **({"file": pull.file} if pull.file else {}),
            "target": {"table": self._target()},
            **style,
            "columns": self._typed(pull.columns),
        }
        if not attributes["columns"]:
            del attributes["columns"]
        sql = {"select.sql": pull.select_sql} if pull.select_sql else {}
        self._found.made.append(Made(self._folder(), "LoadTable", attributes, sql))
        self._found.variables |= pull.variables
        self._found.connections += pull.connections

    def _json(self, action: Mapping[str, Any]) -> None:
        pull, origin = self._fetched, action.get("origin") or {}
        pull = pull or file_pull(self._task, origin) or self._other(origin)
        if pull is None:
            raise ValueError("nothing is known of how its file comes to be")
        self._fetched = None
        take_json(pull, action, self._note)
        self._load(pull)

    def _other(self, origin: Mapping[str, Any]) -> Pull | None:
        """What another task fetches for this one."""
        other = self._tree.tasks.get(str(origin.get("dir") or "").lower())
        for action in other.actions if other else ():
            if other and action.get("do") == "restapi":
                return rest_pull(other, action, self._note)
            if other and action.get("do") == "filecopy":
                return file_pull(other, action.get("origin") or {})
        return None

    def _runsql(self, action: Mapping[str, Any]) -> None:
        left_over(action, ("file", "key_columns", "data_columns"), self._note, "runsql")
        found = [(name, filled(self._task, action, text)) for name, text in files_of(self._task, action.get("file"))]
        if not found:
            raise ValueError("it names no SQL file")
        for name, text in found:
            if odd := sorted(set(re.findall(r"\{\{\s*\w+\s*\}\}", text))):
                raise ValueError(f"{name} has {', '.join(odd)}")
        if any(each.kind == "LoadTable" for each in self._found.made):
            self._note(
                f"runsql: `{self._target()}` is a view over the loaded rows: statements that change them must go"
            )
        text = "\n\n".join(f"-- {name}\n{text.strip().rstrip(';')};" for name, text in found)
        alone = len(self._task.actions) == 1
        folder = self._folder("" if alone else "_runsql")
        self._found.made.append(Made(folder, "Transform", {"materialize": "statements"}, {"transform.sql": text}))

    def _shadow(self, action: Mapping[str, Any]) -> None:
        left_over(action, ("input", "pkcol", *_HOOKS), self._note, "shadow")
        ((_, text),) = list(files_of(self._task, action.get("input")))
        for hook in _HOOKS:
            for name in texts(action.get(hook)):
                self._note(
                    f"{name} (`{hook}` of shadow) is not carried over: put it into transform.sql, or a transform"
                )
        attributes: dict[str, Any] = {"materialize": "table", "target": {"table": self._target()}}
        if key := texts(action.get("pkcol")):
            attributes["key"] = key
        made = Made(self._folder(), "Transform", attributes, {"transform.sql": filled(self._task, action, text)})
        self._found.made.append(made)

    def _history(self, action: Mapping[str, Any]) -> None:
        left_over(action, ("imp", "curr", "key_columns", "data_columns"), self._note, "history")
        base, key = str(action.get("imp") or action.get("curr") or ""), texts(action.get("key_columns"))
        if not base or not key:
            raise ValueError("it needs `imp` (or `curr`) and `key_columns`")
        base = base if "." in base else f"{self._task.schema}.{base}"
        names = [*key, *texts(action.get("data_columns"))]
        attributes = {
            "source": {"type": "database", "connection": "warehouse"},
            "target": {"table": self._target()},
            "style": "history",
            "key": key,
            "absent": "close",
            "columns": self._typed({name.lower(): {} for name in names}),
        }
        self._note("history: the versions of rows that dapu's table has are not taken over; it begins anew")
        select = {"select.sql": f"SELECT {', '.join(names)} FROM {base}"}
        self._found.made.append(Made(self._folder(), "LoadTable", attributes, select))

    def _typed(self, columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Columns with the types that ver/ gives them."""
        types = _types(self._task)
        return {
            name: column
            if "type" in column or "transform" in column or name not in types
            # What dapu sets by default is not in the file.
            else {"type": types[name], **column}
            for name, column in columns.items()
        }

    def _versions(self) -> None:
        """What of ver/ is not in the definition."""
        for file in sorted((self._task.folder / "ver").glob("*.sql")):
            what = "the types of columns were taken from it; the rest" if _types(self._task) else "it"
            self._note(f"ver/{file.name}: {what} is not carried over, since tables are made by their definition")


def _types(task: Task) -> dict[str, str]:
    """Types of columns that CREATE TABLE and ALTER TABLE … ADD in ver/ name, as far as they can be read."""
    import sqlglot
    from sqlglot import exp

    found: dict[str, str] = {}
    for file in sorted((task.folder / "ver").glob("*.sql")):
        try:
            statements = sqlglot.parse(filled(task, {}, file.read_text(encoding="utf-8-sig")), read="postgres")
        except (OSError, UnicodeDecodeError, sqlglot.errors.SqlglotError):
            continue
        for statement in statements:
            if not isinstance(statement, exp.Create | exp.Alter):
                continue
            for column in statement.find_all(exp.ColumnDef):
                kind = column.kind.sql(dialect="postgres").lower() if column.kind else ""
                if kind and kind not in _SPECIAL:
                    found[column.name.lower()] = kind
    return found
