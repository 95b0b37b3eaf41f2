"""Finished runs in the order in which they ended, none skipped and none twice: what sensors react to.

Dagster's own run status sensors end a tick at the first run, and skip one whose handler raised. Here a tick takes up to
LIMIT runs of a kind. Event ids are given before they are committed, so that a lower one can appear after a higher one:
the cursor passes an event only SETTLE seconds after it happened, and remembers which later ones it has seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dagster as dg

LIMIT = 250
"""Runs of a kind that one tick takes."""

SETTLE = 15.0
"""Seconds after which no older event is expected to appear."""

LOOK_BACK = 60.0
"""How far the first tick looks back, for runs that ended while the sensor was being switched on."""

Kind = Literal[dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED]

SUCCEEDED: tuple[Kind, ...] = (dg.DagsterEventType.RUN_SUCCESS,)
ENDED: tuple[Kind, ...] = (
    dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterEventType.RUN_CANCELED,
)


@dataclass(frozen=True)
class Produced:
    """A materialisation: which asset and, if it has any, partition."""

    asset: dg.AssetKey
    partition: str | None


def finished_runs(
    instance: dg.DagsterInstance, cursor: str | None, kinds: Sequence[Kind]
) -> tuple[list[dg.DagsterRun], str]:
    """Runs that ended since `cursor`, and the cursor to go on from, to be saved together with what is done for them."""
    now = time.time()
    state: dict[str, Any] = json.loads(cursor) if cursor else {}
    since = float(state.get("since") or now - LOOK_BACK)
    following: dict[str, Any] = {"since": since}
    ids: list[str] = []
    for kind in kinds:
        found, following[kind.value] = _changes(instance, kind, state.get(kind.value) or {}, since, now)
        ids += found
    return _runs(instance, ids), json.dumps(following)


def _changes(
    instance: dg.DagsterInstance, kind: Kind, state: dict[str, Any], since: float, now: float
) -> tuple[list[str], dict[str, Any]]:
    """Ids of the runs with a new event of a kind, and the kind's part of the cursor."""
    after, seen = state.get("after"), set(state.get("seen", ()))
    ids: list[str] = []
    position = after
    while len(ids) < LIMIT:
        records = instance.fetch_run_status_changes(
            dg.RunStatusChangeRecordsFilter(
                kind, after_storage_id=position, after_timestamp=since if position is None else None
            ),
            limit=LIMIT,
            ascending=True,
        ).records
        for record in records:
            position = record.storage_id
            if record.storage_id not in seen:
                ids.append(record.event_log_entry.run_id)
                seen.add(record.storage_id)
            if record.timestamp < now - SETTLE and (after is None or record.storage_id > after):
                after = record.storage_id
        if len(records) < LIMIT:
            break
    return ids, {"after": after, "seen": sorted(each for each in seen if after is None or each > after)}


def _runs(instance: dg.DagsterInstance, ids: Iterable[str]) -> list[dg.DagsterRun]:
    ids = list(dict.fromkeys(ids))
    if not ids:
        return []
    runs = {run.run_id: run for run in instance.get_runs(dg.RunsFilter(run_ids=ids))}
    return [runs[each] for each in ids if each in runs]


def produced(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[Produced]:
    """What a run materialised, whether it succeeded as a whole or not, each once."""
    made = instance.get_asset_partitions_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    return [Produced(asset, partition) for asset, partitions in made.items() for partition in partitions]
