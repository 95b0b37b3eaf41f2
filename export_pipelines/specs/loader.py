"""Finds the tables and data sets of a project: every folder below assets/ and in DSL_PATH that defines one.

A folder with a defs.yaml of type `export_pipelines.ExportTable` is a table, with `export_pipelines.DataSet` a data set
(dataset_loader.py), with `export_pipelines.LoadTable` a table to load, with `export_pipelines.Transform` a transform.
One without defs.yaml but with a select.sql is a *task*, the shape of older export services: daily, cumulative if its
SQL says so, gzip-compressed CSV, cleaned up after the archive if there is a delete.sql. A broken folder is reported
with all of its errors and takes none of the others down. Nothing is connected to, and SQL is not parsed here (sql.py
does).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export_pipelines.errors import SpecError, SpecErrors
from export_pipelines.specs.checks import is_there, problems
from export_pipelines.specs.dataset_loader import DATASET_TYPE, load_dataset, on_demand
from export_pipelines.specs.documents import Document, files_version, load_documents, read_text, validate
from export_pipelines.specs.load_loader import LOAD_TYPE, load_load
from export_pipelines.specs.loaded import FILES, BrokenFolder, Found, Loaded, keep_apart
from export_pipelines.specs.table import TableDefinition, TableSpec
from export_pipelines.specs.transform_loader import TRANSFORM_TYPE, load_transform

__all__ = ["BrokenFolder", "Document", "Loaded", "load_documents", "load_tables", "validate"]

TABLE_TYPE = "export_pipelines.ExportTable"
_OTHER_TYPES = (DATASET_TYPE, LOAD_TYPE, TRANSFORM_TYPE)
TASK_GROUP = "exports"
"""Group of the tasks in DSL_PATH."""

ROOT_GROUP = "default"
"""Group of a table right below assets/."""

TASK_FILE_NAME = "{table}-{window_end:%Y_%m_%d-%I_%M_%S_%p}"
"""The file name of older export services: `agency-2025_01_01-12_00_00_AM.csv.gz`."""

_SKIPPED = ("__pycache__",)
_COMMENT = re.compile(r"""('(?:[^']|'')*'|"(?:[^"]|"")*")|--[^\n]*|/\*.*?\*/""", re.DOTALL)
_OWN_WINDOW = re.compile(r"%\((window_start|partition_key)\)s")


@dataclass(frozen=True)
class _Folder:
    path: Path
    group: str
    documents: tuple[Document, ...] = ()
    """Of defs.yaml, those that are ours."""
    errors: tuple[SpecError, ...] = ()
    """Why defs.yaml cannot be read."""

    @property
    def name(self) -> str:
        return self.path.name


def load_tables(root: Path, dsl_path: Path | None = None) -> Loaded:
    """Read all tables of the project at `root`, and the tasks of `dsl_path`. Raises nothing for broken folders."""
    loaded = Loaded()
    found: list[Found] = []
    seen: set[Path] = set()
    for folder in _scan_assets(root / "assets", seen) + _scan_tasks(dsl_path, seen):
        if isinstance(folder, BrokenFolder):
            loaded.broken.append(folder)
            continue
        try:
            found.append(_load_folder(folder))
        except SpecErrors as error:
            loaded.broken.append(BrokenFolder(folder.name, folder.group, folder.path, error.errors))
    keep_apart(found, loaded)
    return loaded


def _scan_assets(assets: Path, seen: set[Path]) -> list[_Folder | BrokenFolder]:
    """Folders with one of our files, sorted. Links are followed after all real folders, so that one that is linked
    to has its own name, and each is read once: loops end."""
    found: list[_Folder | BrokenFolder] = []
    if not assets.is_dir():
        return found
    pending, links = [(assets, False)], list[Path]()
    while pending or links:
        path, inside = pending.pop() if pending else (links.pop(), False)
        real = path.resolve()
        if real in seen:
            continue
        seen.add(real)
        folder, children = _look_at(path, _group(assets, path)), _children(path)
        if folder and path == assets:
            folder = _broken_folder(path, ROOT_GROUP, "a table has a folder of its own below assets/")
        elif folder and inside:
            folder = _broken_folder(path, _group(assets, path), "lies in the folder of another table")
        found += [folder] if folder else []
        # A defs.yaml that cannot be read may be anything: it does not make the tables below it nested ones.
        is_table = isinstance(folder, _Folder) and not folder.errors
        links += [child for child in children if child.is_symlink()]
        pending += [(child, inside or is_table) for child in children if not child.is_symlink()]
    return sorted(found, key=lambda each: each.path if isinstance(each, _Folder) else each.folder)


def _scan_tasks(dsl_path: Path | None, seen: set[Path]) -> list[_Folder | BrokenFolder]:
    """The folders right below DSL_PATH; those that assets/ has already shown are left out."""
    if dsl_path is None:
        return []
    if not dsl_path.is_dir():
        return [_broken_folder(dsl_path, TASK_GROUP, "DSL_PATH names no folder")]
    children = [child for child in _children(dsl_path) if child.resolve() not in seen]
    return [folder for child in children if (folder := _look_at(child, TASK_GROUP))]


def _children(path: Path) -> list[Path]:
    """Sub-folders that may hold tables, sorted by name; none when it cannot be read, which `_look_at` reports."""
    try:
        visible = [each for each in path.iterdir() if not each.name.startswith(".") and each.name not in _SKIPPED]
        return sorted(each for each in visible if each.is_dir())
    except OSError:
        return []


def _look_at(path: Path, group: str) -> _Folder | BrokenFolder | None:
    """The folder if it is to be a table: by its SQL, or by a defs.yaml that is ours or cannot be read."""
    try:
        next(path.iterdir(), None)  # a folder that cannot be listed is an error, not an empty one
        if is_there(path / "defs.yaml"):
            ours = tuple(document for document in load_documents(path / "defs.yaml") if _is_ours(document))
            return _Folder(path, group, ours) if ours else None
        return _Folder(path, group) if any(is_there(path / name) for name in FILES) else None
    except SpecErrors as error:
        return _Folder(path, group, errors=tuple(error.errors))
    except OSError as error:
        return _broken_folder(path, group, f"cannot be read: {error.strerror or error}")


def _is_ours(document: Document) -> bool:
    """Whether a document is a table, or one with a misspelt type."""
    kind = document.type
    return kind.startswith("export_pipelines.") or bool(suggest_type(kind))


def suggest_type(kind: str) -> str:
    """A hint for a type that was meant to be ours."""
    known = {each.lower(): each for each in (TABLE_TYPE, *_OTHER_TYPES)}
    for each in known.values():
        if kind.rpartition(".")[2].lower() == each.rpartition(".")[2].lower():
            return f"did you mean {each!r}?"
    near = difflib.get_close_matches(kind.lower(), known, n=1, cutoff=0.6)
    return f"did you mean {known[near[0]]!r}?" if near else ""


def _group(assets: Path, path: Path) -> str:
    return "/".join(path.relative_to(assets).parts[:-1]) or ROOT_GROUP


def _broken_folder(path: Path, group: str, message: str) -> BrokenFolder:
    return BrokenFolder(path.name, group, path, [SpecError(message, file=path)])


def _load_folder(folder: _Folder) -> Found:
    """What a folder defines. Raises SpecErrors with all errors."""
    errors = list(folder.errors)
    texts = {name: text for name in FILES[1:] if (text := _sql(folder.path / name, errors)) is not None}
    if folder.documents and folder.documents[0].type in _OTHER_TYPES:
        return _load_other(folder, texts, errors)
    spec: TableSpec | None = None
    if folder.documents:
        document, spec = _table_spec(folder.documents, errors)
    elif not folder.errors:
        document, spec = _task_spec(folder, texts, errors)
    if spec:
        errors += problems(document, spec, texts)
    if errors or spec is None:
        raise SpecErrors(errors)
    select = texts.get("select.sql")
    table = TableDefinition(
        name=folder.name,
        group=folder.group,
        folder=folder.path,
        spec=spec.model_copy(update={"cumulative": _is_cumulative(spec, select)}),
        select_sql=select,
        delete_sql=texts.get("delete.sql"),
        version=_version(folder.path),
    )
    return Found(table, on_demand(table, document))


def _load_other(folder: _Folder, texts: Mapping[str, str], errors: list[SpecError]) -> Found:
    """The one document that is a data set, a table to load or a transform, validated."""
    first, *others = folder.documents
    for document in others:
        errors.append(SpecError("a folder holds one table or one data set", file=document.file, line=document.line))
    if errors:
        raise SpecErrors(errors)
    if first.type == TRANSFORM_TYPE:
        return Found(None, None, transform=load_transform(folder.path, folder.group, first))
    if first.type == LOAD_TYPE:
        return Found(None, None, load_load(folder.path, folder.group, first, texts))
    return Found(None, load_dataset(folder.path, folder.group, first, texts, _version(folder.path)))


def _table_spec(ours: Sequence[Document], errors: list[SpecError]) -> tuple[Document, TableSpec | None]:
    """The one document that is a table, validated."""
    first = ours[0]
    for document in ours:
        if document.type != TABLE_TYPE:
            known = f"{', '.join([TABLE_TYPE, *_OTHER_TYPES[:-1]])} or {_OTHER_TYPES[-1]}"
            hint = suggest_type(document.type) or f"below assets/ the type is {known}"
            message = f"unknown type {document.type!r}"
            errors.append(SpecError(message, file=document.file, line=document.line, field="type", hint=hint))
    if len(ours) > 1:
        errors.append(SpecError("a folder holds one table or one data set", file=first.file, line=ours[1].line))
    result = validate(TableSpec, first) if first.type == TABLE_TYPE else None
    if isinstance(result, list):
        errors += result
        return first, None
    return first, result


def _task_spec(folder: _Folder, texts: Mapping[str, str], errors: list[SpecError]) -> tuple[Document, TableSpec | None]:
    """What a folder without defs.yaml means. DSL_START and EXPORT_TIMEZONE come from the environment."""
    zone = os.environ.get("EXPORT_TIMEZONE") or "UTC"
    start = os.environ.get("DSL_START") or "2025-01-01"
    attributes = {
        "partitions": {"every": "day", "start": start, "timezone": zone},
        "session_timezone": zone,  # an older service compared with local midnight in the session's own zone
        "file_name": TASK_FILE_NAME,
        "cleanup": "after_archive" if "delete.sql" in texts else "off",
    }
    document = Document(TABLE_TYPE, attributes, 0, folder.path / "select.sql")
    result = validate(TableSpec, document)
    if not isinstance(result, list):
        return document, result
    hint = "it comes from EXPORT_TIMEZONE or DSL_START in the environment"
    errors += [SpecError(each.message, file=each.file, field=each.field, hint=each.hint or hint) for each in result]
    return document, None


def _sql(file: Path, errors: list[SpecError]) -> str | None:
    """The text of a SQL file; None when there is none, or when it is unfit, which `errors` then says."""
    if not is_there(file):
        return None
    try:
        text = read_text(file)
    except SpecError as error:
        errors.append(error)
        return None
    if not text.strip():
        errors.append(SpecError("is empty", file=file))
        return None
    return text


def _is_cumulative(spec: TableSpec, select: str | None) -> bool:
    """As the spec says; else whether select.sql, comments aside, asks for nothing that bounds a window from below."""
    if spec.cumulative is not None:
        return spec.cumulative
    if spec.partitions is None or select is None:
        return False
    return not _OWN_WINDOW.search(_COMMENT.sub(lambda found: found.group(1) or " ", select))


def _version(folder: Path) -> str:
    """SHA-256 over names, lengths and bytes of the files that define the table."""
    return files_version(folder, [folder / name for name in FILES])
