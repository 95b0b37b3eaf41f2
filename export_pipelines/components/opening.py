"""Resources of a project opened outside of Dagster's runs: by the command line, the service and its worker."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from export_pipelines.errors import RequestError


def open_resource(resources: Mapping[str, Any], key: str) -> Any:
    """The resource of a key, opened: a source, a store or the catalog. Nothing is connected to before it is used.

    Raises:
        RequestError: there is none, or a variable that it reads is not set.
    """
    if key not in resources:
        known = ", ".join(sorted(resources)) or "none"
        raise RequestError(f"there is no {key!r} in resources/", hint=f"known are {known}")
    return initialized(key, resources[key]).open()


def initialized(key: str, resource: Any) -> Any:
    """A resource of the project with its variables read. Nothing is connected to.

    Raises:
        RequestError: there is none, or a variable is not set.
    """
    from dagster import DagsterError

    if resource is None:
        raise RequestError(f"there is no {key!r} in resources/", hint="compare resources/ with that of a new project")
    if unset := unset_variable(resource):
        raise RequestError(
            f"the variable {unset} of resource {key!r} is not set", hint="set it in the environment or in .env"
        )
    try:
        return resource.process_config_and_initialize()
    except (DagsterError, ValueError, KeyError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RequestError(f"resource {key!r} cannot be made: {first}", hint="check its file in resources/") from error


def variables_of(resource: Any) -> list[str]:
    """Names of the environment variables that a resource reads when it is made."""
    from dagster import EnvVar

    return [value.env_var_name for value in vars(resource).values() if isinstance(value, EnvVar)]


def unset_variable(resource: Any) -> str:
    """The first variable of a resource that is not set, or empty; no text if there is none."""
    return next((name for name in variables_of(resource) if not os.environ.get(name)), "")
