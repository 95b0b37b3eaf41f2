"""YAML documents with the line of every key, and their validation: for assets/, resources/ and schedules/ alike.

A document is what Dagster's components are written as: `type:` and `attributes:`; several in a file are parted by
`---`. YAML is read safely. Every error carries the file, the line (from 1) and the dotted field.
"""

from __future__ import annotations

import difflib
import hashlib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from export_pipelines.errors import SpecError, SpecErrors

DocumentPath = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)

PREFIX = "export_pipelines."
"""Of the types of documents that are ours."""

MAX_NODES = 50_000
"""Nodes of one document, aliases counted as often as they are used: a few lines of aliases can make billions."""

_FIELDS = ("type", "attributes")
_QUOTED = {bool: "a boolean", int: "a number", float: "a number"}


def files_version(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 over names, lengths and bytes of those files of a folder that are there."""
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            data = file.read_bytes()
            digest.update(f"{file.relative_to(folder).as_posix()}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Document:
    """One document. `lines` gives the line of a path within the attributes; `()` is the line of `attributes` itself."""

    type: str
    attributes: Mapping[str, Any]
    line: int
    file: Path
    lines: Mapping[DocumentPath, int] = field(default_factory=dict)

    def error(self, message: str, path: DocumentPath = (), hint: str = "") -> SpecError:
        """An error at a path of the attributes, or at the nearest one above it that is written down."""
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known, self.line)
        return SpecError(message, file=self.file, line=line, field=dotted(path), hint=hint)


def dotted(path: Sequence[str | int]) -> str:
    """`('a', 'b', 0)` as `a.b[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def read_text(file: Path) -> str:
    """A UTF-8 text file, a byte order mark left out.

    Raises:
        SpecError: it is no regular file, cannot be read, or is not UTF-8 (the line is named).
    """
    try:
        if not file.is_file():
            raise SpecError("is not a regular file", file=file)  # a pipe would be waited for without end
        data = file.read_bytes()
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}", file=file) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError("is not UTF-8", file=file, line=line, hint="save the file in UTF-8") from error
    if "\0" in text:
        raise SpecError("has a NUL character", file=file, line=text.count("\n", 0, text.index("\0")) + 1)
    return text


def load_documents(file: Path) -> list[Document]:
    """All documents of a YAML file; empty ones are left out.

    Raises:
        SpecErrors: the file cannot be read, is not YAML, has a key twice, or a document is not of the form
            `type` and `attributes`. Documents of types that are not ours may have Dagster's other fields too.
    """
    try:
        text = read_text(file)
    except SpecError as error:
        raise SpecErrors([error]) from error
    documents: list[Document] = []
    errors: list[SpecError] = []
    try:
        for node, data in _parse(text):
            doubles = list(_duplicates(node))
            errors += [SpecError(f"key {key!r} is given twice", file=file, line=line) for key, line in doubles]
            if data is not None and not doubles:
                documents.append(_document(file, node, data))
    except SpecError as error:
        errors.append(error)
    except yaml.YAMLError as error:
        errors.append(_yaml_error(file, error, text))
    except RecursionError:
        errors.append(SpecError("is nested too deeply", file=file))
    if errors:
        raise SpecErrors(errors)
    return documents


# libyaml's parser where PyYAML was built with it: a third of the time to load 200 tables.
_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[valid-type, misc]
    """Safe, with a line for values that Python's own types refuse, such as the date 2013-02-30."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError, TypeError, LookupError) as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


def _parse(text: str) -> Iterator[tuple[yaml.Node, Any]]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                _bound(node)
                # Keys given twice are gone once a mapping is constructed, merged ones once its node is flattened.
                yield node, loader.construct_document(node) if not any(_duplicates(node)) else None
    finally:
        loader.dispose()


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _bound(root: yaml.Node) -> None:
    """Refuse what would grow without bounds: anchors within themselves, and aliases of aliases."""
    total = 0
    pending: list[tuple[yaml.Node, tuple[int, ...]]] = [(root, ())]
    while pending:
        node, above = pending.pop()
        total += 1
        if id(node) in above or total > MAX_NODES or len(above) > 100:
            why = "an alias is within its own anchor" if id(node) in above else "the document is too large or too deep"
            raise yaml.constructor.ConstructorError(None, None, why, node.start_mark)
        pending += [(child, (*above, id(node))) for child in _children(node)]


def _duplicates(node: yaml.Node) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    yield key.value, key.start_mark.line + 1
                seen.add((key.tag, key.value))
    for child in _children(node):
        yield from _duplicates(child)


def _lines(node: yaml.Node, path: DocumentPath = ()) -> Iterator[tuple[DocumentPath, int]]:
    """The line of each key and each item below a node. A key that overrides a merged one comes last and wins."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield (*path, key.value), key.start_mark.line + 1
                yield from _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield (*path, number), value.start_mark.line + 1
            yield from _lines(value, (*path, number))


def _document(file: Path, node: yaml.Node, data: Any) -> Document:
    line = node.start_mark.line + 1
    if not isinstance(data, dict) or not isinstance(node, yaml.MappingNode):
        raise SpecError("a document is a mapping with `type` and `attributes`", file=file, line=line)
    lines = dict(_lines(node))
    kind = data.get("type")
    if not isinstance(kind, str) or not kind:
        message = "`type` is missing" if kind is None else "`type` is not a text"
        raise SpecError(message, file=file, line=lines.get(("type",), line), field="type")
    if kind.startswith(PREFIX) and (unknown := [key for key in data if key not in _FIELDS]):
        key = str(unknown[0])
        hint = suggest(key, _FIELDS) or "the fields of the component go below `attributes:`"
        raise SpecError(f"unknown field {key!r}", file=file, line=lines.get((key,), line), field=key, hint=hint)
    attributes = data.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise SpecError("is not a mapping", file=file, line=lines.get(("attributes",), line), field="attributes")
    inner = {path[1:]: at for path, at in lines.items() if path[0] == "attributes"}
    return Document(kind, attributes, line, file, {(): line, **inner})


def _yaml_error(file: Path, error: yaml.YAMLError, text: str) -> SpecError:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return SpecError(f"is not valid YAML: {error.problem}", file=file, line=mark.line + 1 if mark else 0)
    position = getattr(error, "position", None)
    line = text.count("\n", 0, position) + 1 if isinstance(position, int) else 0
    return SpecError("has a character that YAML does not allow", file=file, line=line)


def suggest(word: str, known: Sequence[str]) -> str:
    """`did you mean …?`, or nothing."""
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def validate(model: type[ModelT], document: Document) -> ModelT | list[SpecError]:
    """The attributes as a model, or every error in them, each with the line of its key (of the mapping it is missing
    from). Values are not repeated in messages, since one of them may be a password."""
    try:
        return model.model_validate(dict(document.attributes))
    except ValidationError as error:
        found = error.errors(include_url=False)
        return [_spec_error(model, document, each) for each in found]
    except RecursionError:
        return [document.error("is nested too deeply")]


def document_spec(document: Document, models: Mapping[str, type[ModelT]]) -> ModelT:
    """The document as the model of its type. Raises SpecError: there is no such type; SpecErrors."""
    model = models.get(document.type.removeprefix(PREFIX))
    if model is None:
        known = [PREFIX + name for name in models]
        hint = suggest(document.type, known) or f"known are {', '.join(known)}"
        raise SpecError(
            f"unknown type {document.type!r}", file=document.file, line=document.line, field="type", hint=hint
        )
    result = validate(model, document)
    if isinstance(result, list):
        raise SpecErrors(result)
    return result


def _spec_error(model: type[BaseModel], document: Document, error: ErrorDetails) -> SpecError:
    path = _written_path(document, error)
    message, hint = _message(model, path, error)
    return document.error(message, path, hint)


def _written_path(document: Document, error: ErrorDetails) -> DocumentPath:
    """Pydantic's location without what is not in the file: names of union members and validators."""
    path: DocumentPath = ()
    loc = error["loc"]
    for part in loc:
        if (*path, part) in document.lines:
            path = (*path, part)
    if error["type"] == "missing" and loc:
        path = (*path, loc[-1])
    return path


def _message(model: type[BaseModel], path: DocumentPath, error: ErrorDetails) -> tuple[str, str]:
    kind, value = error["type"], error["input"]
    if kind == "missing":
        return "is missing", ""
    if kind == "extra_forbidden":
        known = sorted(_fields_at(model, path[:-1]))
        name = str(path[-1]) if path else ""
        return "unknown field", suggest(name, known) or f"known are {', '.join(known)}"
    if kind in ("enum", "literal_error"):
        expected = str(error.get("ctx", {}).get("expected", ""))
        return f"should be {expected}", suggest(str(value), expected.replace(" or ", ", ").replace("'", "").split(", "))
    if kind == "union_tag_invalid":
        context = error["ctx"]
        near = suggest(str(context["tag"]), context["expected_tags"].replace("'", "").split(", "))
        return f"{str(context['discriminator']).strip(chr(39))!r} should be one of {context['expected_tags']}", near
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if kind == "string_type" and type(value) in _QUOTED:
        return f"{message}, not {_QUOTED[type(value)]}", "put it in quotes"
    if kind == "string_type" and value is None:
        return f"{message}, not null", "give a value; null, NULL and ~ are words only within quotes"
    return message, ""


def _fields_at(model: type[BaseModel], path: DocumentPath) -> set[str]:
    """Names of the fields which the models at a path of a model have."""
    types: list[Any] = [model]
    for part in path:
        types = [inner for each in types for inner in _step(each, part)]
    return {name for each in types for name in _models_fields(each)}


def _models_fields(kind: Any) -> list[str]:
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return []
    return [info.alias or name for name, info in kind.model_fields.items()]


def _step(kind: Any, part: str | int) -> list[Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [
            each
            for name, info in kind.model_fields.items()
            if part in (name, info.alias)
            for each in _members(info.annotation)
        ]
    return [each for argument in typing.get_args(kind) for each in _members(argument)]


def _members(annotation: Any) -> list[Any]:
    """The members of a union, Annotated taken off; the annotation alone if it is none."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [each for argument in typing.get_args(annotation) for each in _members(argument)]
    return [annotation]
