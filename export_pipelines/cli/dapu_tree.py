"""A tree `routes/<route>/<schema>/<table>/` of dapu, read as it is: routes, connections, tasks and their actions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from export_pipelines.errors import RequestError

TASK_FILE = "haulwork.yaml"
ROUTE_FILE = "route.yaml"
_CONNECTIONS = ("connections.yaml", "conf/connections.yaml", "profiles.yaml", "conf/profiles.yaml")


@dataclass
class Route:
    """A source of several tables."""

    code: str
    folder: Path
    spec: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """`sql`, `http` or `file`."""
        return str(self.spec.get("type") or "sql").lower()

    @property
    def alias(self) -> str:
        """Name of its connection."""
        return str(self.spec.get("alias") or self.code)


@dataclass
class Task:
    """A table, with what is done for it."""

    route: Route
    schema: str
    table: str
    folder: Path
    spec: Mapping[str, Any]

    @property
    def id(self) -> str:
        """As dapu writes it."""
        return f"{self.route.code}.{self.schema}.{self.table}".lower()

    @property
    def actions(self) -> list[Mapping[str, Any]]:
        """What is done, in order."""
        found = self.spec.get("actions") or []
        return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


@dataclass
class Tree:
    """All that was read."""

    tasks: dict[str, Task] = field(default_factory=dict)
    connections: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    unread: list[tuple[Path, str]] = field(default_factory=list)
    """Files that say nothing to us, and why."""


def read_tree(folder: Path, connections: Path | None) -> Tree:
    """Read a folder `routes/`. Files that cannot be read are noted.

    Raises:
        RequestError: it has no task, or the file of connections cannot be read.
    """
    tree = Tree()
    for each in sorted(folder.iterdir()) if folder.is_dir() else ():
        if each.is_dir():
            _read_route(tree, each)
    if not tree.tasks:
        raise RequestError(f"{folder} has no <route>/<schema>/<table>/{TASK_FILE}", hint="give the folder `routes`")
    beside = [folder.parent / name for name in _CONNECTIONS]
    for file in [connections] if connections else [each for each in beside if each.is_file()]:
        tree.connections |= _connections(file)
    return tree


def _read_route(tree: Tree, folder: Path) -> None:
    route = Route(folder.name, folder, _mapping(tree, folder / ROUTE_FILE) or {})
    for file in sorted(folder.glob("*/*/*.y*ml")):
        if file.name.lower() != TASK_FILE:
            if not (file.parent / TASK_FILE).is_file():
                tree.unread.append((file, f"the definition of a task is named {TASK_FILE}"))
            continue
        if (spec := _mapping(tree, file)) is not None:
            task = Task(route, file.parent.parent.name.lower(), file.parent.name.lower(), file.parent, spec)
            tree.tasks[task.id] = task


def _mapping(tree: Tree, file: Path) -> Mapping[str, Any] | None:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8-sig")) if file.is_file() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        tree.unread.append((file, f"cannot be read: {' '.join(str(error).split())}"))
        return None
    if isinstance(found, dict):
        return found
    tree.unread.append((file, "is missing" if not file.is_file() else "is not a mapping"))
    return None


def _connections(file: Path) -> dict[str, Mapping[str, Any]]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        # The file may hold passwords: what YAML quotes of it is not repeated.
        raise RequestError(f"{file} cannot be read as YAML", hint=type(error).__name__) from None
    if isinstance(found, dict):
        return {str(name): each for name, each in found.items() if isinstance(each, dict)}
    listed = found if isinstance(found, list) else []
    return {str(each["name"]): each for each in listed if isinstance(each, dict) and each.get("name")}


def variable(*parts: str) -> str:
    """A name for an environment variable."""
    return re.sub(r"\W+", "_", "_".join(parts), flags=re.ASCII).upper().strip("_")


def texts(value: Any) -> list[str]:
    """A text, or a list of them, as a list."""
    if isinstance(value, str):
        return [value]
    return [str(each) for each in value] if isinstance(value, list) else []


def files_of(task: Task, names: Any) -> Iterator[tuple[str, str]]:
    """Name and text of files of a task.

    Raises:
        ValueError: one is not there, is outside of the task's folder, or cannot be read.
    """
    for name in texts(names):
        file = (task.folder / name).resolve()
        if not file.is_relative_to(task.folder.resolve()) or not file.is_file():
            raise ValueError(f"there is no file {name!r}")
        try:
            yield name, file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{name!r} cannot be read") from error


def filled(task: Task, action: Mapping[str, Any], text: str) -> str:
    """SQL with dapu's placeholders filled in."""
    values = {
        "target_schema": task.schema,
        "target_table": task.table,
        "target_table_shadow": f"{task.table}__shadow",
        "key_columns": ", ".join(texts(action.get("key_columns"))),
        "data_columns": ", ".join(texts(action.get("data_columns"))),
        "ts_column": str(action.get("ts_col") or ""),
    }
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value)
    return text
