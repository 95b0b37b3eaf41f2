"""Links from an asset to the files that define it, which Dagster's UI opens in an editor."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import dagster as dg


def code_references(folder: Path, files: Iterable[str]) -> dg.CodeReferencesMetadataValue:
    """The files of a folder, as metadata `dagster/code_references`."""
    with warnings.catch_warnings():
        # A beta feature of 1.13; tests hold what we need of it.
        warnings.simplefilter("ignore", category=dg.BetaWarning)
        return dg.CodeReferencesMetadataValue(
            code_references=[
                dg.LocalFileCodeReference(file_path=str(folder / each), line_number=1, label=each) for each in files
            ]
        )
