"""`${VAR}` inside the texts of resources/: the environment variable of that name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from export_pipelines.errors import RequestError, SpecError
from export_pipelines.specs.documents import Document, DocumentPath

_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")


def names_in(text: str) -> list[str]:
    """Names of the variables that a text refers to."""
    return _VARIABLE.findall(text)


def unset_in(text: str) -> list[str]:
    """Those of them that are not set."""
    return [name for name in names_in(text) if not os.environ.get(name)]


def filled(text: str) -> str:
    """The text with the values of its variables.

    Raises:
        RequestError: one is not set.
    """
    if unset := unset_in(text):
        raise RequestError(f"the variable {unset[0]} is not set", hint="set it in the environment or in .env")
    return _VARIABLE.sub(lambda found: os.environ[found[1]], text)


def unset_errors(document: Document) -> Iterator[SpecError]:
    """An error for each variable that a document refers to and that is not set."""
    for path, text in _texts(document.attributes, ()):
        for name in unset_in(text):
            hint = "set it in the environment or in .env"
            yield document.error(f"the variable {name} is not set", path, hint)


def fill(document: Document, later: set[str]) -> Document:
    """The document with its texts filled in, those of the fields `later` left as they are: they may be secret, and are
    filled in when they are used."""
    attributes = {key: each if key in later else _fill(each) for key, each in document.attributes.items()}
    return replace(document, attributes=attributes)


def _texts(value: Any, path: DocumentPath) -> Iterator[tuple[DocumentPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _texts(each, (*path, str(key)))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _texts(each, (*path, number))


def _fill(value: Any) -> Any:
    if isinstance(value, str):
        return value if unset_in(value) else filled(value)
    if isinstance(value, dict):
        return {key: _fill(each) for key, each in value.items()}
    return [_fill(each) for each in value] if isinstance(value, list) else value
