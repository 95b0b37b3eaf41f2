"""Errors of the driver as errors of the catalog."""

from __future__ import annotations

import psycopg2

from export_pipelines.errors import CatalogError


def catalog_error(error: psycopg2.Error, source: str, *, transient: bool) -> CatalogError:
    """The error of a statement; `source` is the catalog's name, `transient` whether the connection was lost."""
    if isinstance(error, psycopg2.errors.UndefinedTable | psycopg2.errors.UndefinedColumn):
        message = f"the catalog in {source} is missing or of another version"
        return CatalogError(message, hint="run `export-pipelines migrate`")
    return CatalogError(f"catalog: {str(error).splitlines()[0]}", transient=transient)
