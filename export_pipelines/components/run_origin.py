"""Where runs that we create ourselves belong to: the code location under which the UI looks for their job."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.workspace.load import location_origins_from_yaml_paths
from sqlalchemy.exc import SQLAlchemyError

from export_pipelines.errors import RequestError

_MODULE = "export_pipelines.definitions"


def repository_origin(root: Path, name: str) -> RemoteRepositoryOrigin | None:
    """This project's code location as its workspace.yaml names it, None if it does not name it.

    Raises:
        RequestError: workspace.yaml cannot be read.
    """
    try:
        found = location_origins_from_yaml_paths([str(root / "workspace.yaml")])
    except Exception as error:
        raise RequestError(
            f"{root / 'workspace.yaml'} cannot be read: {str(error).splitlines()[0]}",
            hint="compare it with the one that `export-pipelines init` writes",
        ) from error
    for origin in found:
        target = getattr(origin, "loadable_target_origin", None)
        if target is not None and target.module_name == _MODULE:
            here = (root / target.working_directory).resolve() if target.working_directory else root
            if here == root:
                return RemoteRepositoryOrigin(origin, name)
    return None


def know_pools(instance: dg.DagsterInstance, job: Any) -> None:
    """Let Dagster's storage know the pools of a job.

    Two runs that use a pool for the first time at the same moment both insert it, and the second would fail: in
    Dagster 1.13 by a statement in a transaction that is aborted already.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    known = {pool.name for pool in storage.get_pool_limits()}
    for name in {pool for node in job.all_node_defs for pool in node.pools} - known:
        with suppress(SQLAlchemyError):  # another process was first
            storage.initialize_concurrency_limit_to_default(name)
