"""What `check` says of tables to load, beside what their files show."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from export_pipelines.cli.places import documents_of
from export_pipelines.errors import SpecError
from export_pipelines.specs.load_loader import LOAD_TYPE
from export_pipelines.specs.service import variables

if TYPE_CHECKING:
    from export_pipelines.specs.load import LoadDefinition


def unset_errors(load: LoadDefinition) -> Iterator[SpecError]:
    """An error for each variable that the source of a table reads and that is not set."""
    hint = "set it in the environment or in .env"
    file = load.folder / "defs.yaml"
    document = next((each for each in documents_of(file) if each.type == LOAD_TYPE), None)
    for path, variable in variables(load.spec.source, ("source",)):
        if os.environ.get(variable.env, variable.default) is None:
            message = f"the variable {variable.env} is not set"
            yield document.error(message, path, hint) if document else SpecError(message, file=file, hint=hint)
