"""What is paused: tables to load and transforms, routes, or all of them.

Kept in Dagster's storage, which all its processes share. A pause holds back what a LoadSensor would start. Runs that
somebody starts are not held back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

import dagster as dg

from export_pipelines.specs.load import LoadDefinition
from export_pipelines.specs.transform import TransformDefinition

Made = LoadDefinition | TransformDefinition
Kind = Literal["table", "route", "all"]


def _key(kind: Kind, name: str) -> str:
    return f"export_pipelines/paused/{kind}/{name}"


def set_pause(instance: dg.DagsterInstance, kind: Kind, name: str, reason: str | None) -> None:
    """Pause with a reason; resume with None. `name` is empty for `all`."""
    value = {} if reason is None else {"reason": reason, "since": datetime.now(UTC).isoformat(timespec="seconds")}
    instance.daemon_cursor_storage.set_cursor_values({_key(kind, name): json.dumps(value)})


def pauses(instance: dg.DagsterInstance, loads: Iterable[Made]) -> dict[tuple[Kind, str], dict[str, str]]:
    """What is paused of some tables and their routes, and all: reason and time."""
    scopes: set[tuple[Kind, str]] = {("all", "")}
    for load in loads:
        scopes.add(("table", load.id))
        if load.spec.route:
            scopes.add(("route", load.spec.route))
    found = instance.daemon_cursor_storage.get_cursor_values({_key(*each) for each in scopes})
    return {each: value for each in sorted(scopes) if (value := json.loads(found.get(_key(*each), "{}")))}


def paused(instance: dg.DagsterInstance, loads: Iterable[Made]) -> set[str]:
    """Ids of the tables that are held back."""
    loads = list(loads)
    scopes = pauses(instance, loads)
    return {
        load.id
        for load in loads
        if ("all", "") in scopes or ("table", load.id) in scopes or ("route", load.spec.route or "") in scopes
    }
