"""Where in the project's files something is said, for errors that name file and line."""

from __future__ import annotations

from pathlib import Path

from export_pipelines.errors import ExportPipelinesError, SpecError, SpecErrors
from export_pipelines.specs.documents import Document, DocumentPath, load_documents
from export_pipelines.specs.loader import TABLE_TYPE
from export_pipelines.specs.table import TableDefinition


def table_error(table: TableDefinition, message: str, path: DocumentPath = (), hint: str = "") -> SpecError:
    """An error at a field of a table's defs.yaml; at its select.sql where there is no defs.yaml."""
    file = table.folder / "defs.yaml"
    for document in documents_of(file):
        if document.type == TABLE_TYPE:
            return document.error(message, path, hint)
    file = file if file.exists() else table.folder / "select.sql"
    return SpecError(message, file=file, line=1, hint=hint)


def resource_error(root: Path, key: str, error: ExportPipelinesError) -> SpecError:
    """An error of a resource, at the document that defines it."""
    for file in sorted((root / "resources").rglob("defs.yaml")):
        for document in documents_of(file):
            # Documents that need not give their key.
            alone = {"export_pipelines.CatalogDatabase": "catalog", "export_pipelines.Service": "service"}
            given = document.attributes.get("resource_key") or alone.get(document.type)
            if given == key:
                return document.error(error.message, ("url",) if "url" in document.attributes else (), error.hint)
    return SpecError(error.message, file=root / "resources", hint=error.hint)


def line_of(text: str, snippet: str) -> int:
    """The line on which a piece of a statement stands in its file; 1 if it cannot be said."""
    for length in (60, 20, 8):
        piece = snippet[:length].split("\n", 1)[0]
        if piece.strip() and text.count(piece) >= 1:
            return text.count("\n", 0, text.index(piece)) + 1
    return 1


def documents_of(file: Path) -> list[Document]:
    """The documents of a file; none if it cannot be read."""
    try:
        return load_documents(file) if file.is_file() else []
    except SpecErrors:
        return []
