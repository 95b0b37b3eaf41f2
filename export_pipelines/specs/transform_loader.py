"""Transforms, found below assets/: folders of `type: export_pipelines.Transform`. See loader.py."""

from __future__ import annotations

from pathlib import Path

from export_pipelines.errors import SpecError, SpecErrors
from export_pipelines.specs.checks import is_there, label_problems
from export_pipelines.specs.documents import Document, files_version, read_text, validate
from export_pipelines.specs.transform import TransformDefinition, TransformSpec

TRANSFORM_TYPE = "export_pipelines.Transform"

_OWN_FILES = ("defs.yaml", "transform.sql")


def load_transform(folder: Path, group: str, document: Document) -> TransformDefinition:
    """The transform of a folder. Its SQL is not parsed here.

    Raises:
        SpecErrors: with every error.
    """
    errors: list[SpecError] = []
    sql = _sql(folder / "transform.sql", errors)
    for name in ("select.sql", "delete.sql"):
        if is_there(folder / name):
            errors.append(SpecError("a transform has transform.sql only", file=folder / name, hint="remove the file"))
    spec = validate(TransformSpec, document)
    if isinstance(spec, list):
        raise SpecErrors([*spec, *errors])
    errors += label_problems(document, spec.owners, spec.tags)
    if errors:
        raise SpecErrors(errors)
    return TransformDefinition(
        name=folder.name, group=group, folder=folder, spec=spec, sql=sql, version=transform_version(folder)
    )


def transform_version(folder: Path) -> str:
    """The version of a transform as it is on disk now: SHA-256 over names, lengths and bytes of its files."""
    return files_version(folder, [folder / name for name in _OWN_FILES])


def _sql(file: Path, errors: list[SpecError]) -> str:
    try:
        text = read_text(file) if is_there(file) else ""
    except SpecError as error:
        errors.append(error)
        return ""
    if not text.strip():
        what = "is empty" if is_there(file) else "is missing"
        errors.append(SpecError(what, file=file, hint="write the SQL of the transform into it"))
    return text
