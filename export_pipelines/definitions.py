"""The code location: `python_module: export_pipelines.definitions` in workspace.yaml.

The project is the folder that `settings.find_root` finds: with several of them in one workspace, each entry's
`working_directory` says which.
"""

from __future__ import annotations

import dagster as dg

from export_pipelines import settings
from export_pipelines.components.project import load_project


def load() -> dg.Definitions:
    """The definitions of the project that this process stands in. Its settings go into the environment."""
    found = settings.load_settings()
    settings.apply(found)
    return load_project(found.root, found.dsl_path).definitions()


defs = load()
